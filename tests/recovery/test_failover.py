"""A streaming standby that is promoted while callers, appliers and a receiver work."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from support.database import Database, until, wait_transactions_over
from support.moved import CopiedServer, check_verified, database_on, open_witness
from support.own_server import own_database
from support.process import InturnProcess
from support.receiving import SCHEMA, SECRET, free_port, receiving
from support.recovery_page import snippet, tell_sender
from support.roles import CALLER
from support.server import Server

from inturn.schema.receiver import upgrade_receiver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KEYS = ("k0", "k1", "k2", "k3")
#: Nothing of the promoted server waits for a standby of its own.
_STANDBY = """
primary_conninfo = '{conninfo} application_name=standby'
synchronous_standby_names = ''
hot_standby = on
"""


class Callers:
    """Callers that append until the server is gone, each to its own key, and know what was acknowledged.

    Args:
        database: where.
        topic: to which.
        rest: how long each does so after an append, so that appliers keep up, in seconds.
    """

    def __init__(self, database: Database, topic: str = "orders", rest: float = 0) -> None:
        self.acknowledged: list[tuple[str, int]] = []
        self._topic, self._rest = topic, rest
        self._threads = [
            threading.Thread(target=self._append, args=(database.caller_dsn, key)) for key in KEYS
        ]

    def _append(self, dsn: str, key: str) -> None:
        append = "SELECT inturn.append(%s, %s, 'insert')"
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                while True:
                    row = connection.execute(append, [self._topic, key]).fetchone()
                    assert row is not None
                    self.acknowledged.append((key, row[0]))
                    time.sleep(self._rest)
        except psycopg.OperationalError:
            pass  # the server is gone: what was not acknowledged may be there or not

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait_over(self) -> None:
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)


@contextmanager
def standby_of(primary: Database) -> Iterator[CopiedServer]:
    """Give a standby that follows the primary; it is removed in the end."""
    conninfo = primary.server.dsn(user="postgres").replace("dbname=postgres", "").replace("'", "")
    standby = CopiedServer(primary.server, "standby", extra_settings=_STANDBY.format(conninfo=conninfo))
    try:
        standby.start()
        yield standby
    finally:
        standby.remove()


@pytest.fixture
def primary(server: Server) -> Iterator[Database]:
    """A database of the test's own server, with the topic `orders`."""
    with own_database(server) as database:
        open_witness(database)
        yield database


def wait_streaming(primary: Database, state: str) -> None:
    until(
        lambda: primary.value(
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'standby'"
            " AND state = 'streaming' AND sync_state = %s",
            [state],
        ),
        f"the standby streams, {state}",
        patience=120,
    )


def has_all(primary: Database, follower: Database) -> None:
    """Wait until the standby has what is committed now."""
    end = primary.value("SELECT pg_current_wal_lsn()")
    until(lambda: follower.value("SELECT pg_last_wal_replay_lsn() >= %s", [end]), "the standby has it all")


def cut_off(primary: Database, follower: Database) -> None:
    """Let the standby get nothing from here on, as when the network is cut."""
    follower.administer("ALTER SYSTEM SET primary_conninfo = ''")
    follower.administer("SELECT pg_reload_conf()")
    until(lambda: not primary.value("SELECT count(*) FROM pg_stat_replication"), "the standby is cut off")


def appliers_beside(primary: Database) -> threading.Thread:
    """Apply until the server is gone."""

    def apply() -> None:
        try:
            with psycopg.connect(primary.applier_dsn, autocommit=True) as connection:
                while True:
                    connection.execute("CALL inturn.apply(max_seconds => 1)")
        except psycopg.OperationalError:
            pass

    thread = threading.Thread(target=apply)
    thread.start()
    return thread


def test_synchronous_nothing_that_was_acknowledged_is_lost(primary: Database) -> None:
    with standby_of(primary) as standby:
        primary.administer("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        primary.administer("SELECT pg_reload_conf()")
        wait_streaming(primary, "sync")
        # What was applied before the crash has to be applied once: its effect commits with it.
        callers, applier = Callers(primary), appliers_beside(primary)
        callers.start()
        until(lambda: len(callers.acknowledged) >= 50, "a load", patience=120)
        primary.server.stop("immediate")
        callers.wait_over()
        applier.join(60)
        standby.promote()
        promoted = database_on(standby, primary.name)
        there = set(promoted.execute("SELECT key, seq FROM inturn.command_log"))
        assert set(callers.acknowledged) <= there
        check_verified(promoted)
        assert promoted.value("SELECT inturn.append('orders', 'k0', 'after')") is not None
        promoted.execute("CALL inturn.apply()")
        effects = promoted.execute("SELECT key, seq FROM app.witness ORDER BY id")
        assert len(effects) == len(set(effects)) == len(there) + 1
        for key in {key for key, _ in effects}:
            seqs = [seq for each, seq in effects if each == key]
            assert seqs == sorted(seqs)
        check_verified(promoted)
        promoted.close()


def test_asynchronous_the_last_commits_may_be_lost_and_the_rest_is_whole(primary: Database) -> None:
    with standby_of(primary) as standby:
        wait_streaming(primary, "async")
        primary.execute("SELECT inturn.append('orders', 'a', 'kept')")
        primary.execute("CALL inturn.apply()")
        follower = database_on(standby, primary.name)
        has_all(primary, follower)
        cut_off(primary, follower)
        # Acknowledged, applied, and gone.
        assert primary.value("SELECT inturn.append('orders', 'a', 'lost')") == 2
        primary.execute("SELECT inturn.append('orders', 'b', 'lost')")
        primary.execute("CALL inturn.apply()")
        primary.server.stop("immediate")
        follower.close()
        standby.promote()
        promoted = database_on(standby, primary.name)
        check_verified(promoted)
        assert promoted.execute("SELECT key, name FROM inturn.command_log") == [("a", "kept")]
        # The number is given again, to another command: why a receiver elsewhere has to be told.
        assert promoted.value("SELECT inturn.append('orders', 'a', 'other')") == 2
        promoted.execute("CALL inturn.apply()")
        check_verified(promoted)
        promoted.close()


@pytest.fixture
def service(empty_database: Database) -> Database:
    """B's database, of a service that accepts what it is posted."""
    upgrade_receiver(empty_database.dsn)
    empty_database.execute(SCHEMA)
    return empty_database


@contextmanager
def posting(sender: Database, service: Database, port: int) -> Iterator[None]:
    """Have an applier post to B meanwhile; at the end both are gone, and B's transactions over."""
    with receiving(service.dsn, port):
        environment = {"INTURN_HTTP_SECRET": SECRET}
        with InturnProcess(sender.dsn, "apply", "--topic", "calls", environment=environment):
            yield
    wait_transactions_over(service)


def lose_under_load(primary: Database, follower: Database, service: Database, port: int) -> Callers:
    """Crash the primary when B has accepted of each key what the standby did not get."""
    accepted = "SELECT key, seq, epoch FROM inturn.accepted"
    callers = Callers(primary, "calls", rest=0.05)
    with posting(primary, service, port):
        callers.start()
        until(lambda: len(service.execute(accepted)) == len(KEYS), "each key is under way", patience=120)
        has_all(primary, follower)
        cut_off(primary, follower)
        stood = "SELECT s.key, (SELECT max(seq) FROM inturn.command_log l WHERE l.key = s.key), s.epoch"
        got = {key: (seq, epoch) for key, seq, epoch in primary.execute(f"{stood} FROM inturn.key_cursor s")}
        until(
            lambda: all(
                seq > got[key][0] + 2 and epoch > got[key][1] + 5
                for key, seq, epoch in service.execute(accepted)
            ),
            "B has commands of turns that the standby did not get",
            patience=120,
        )
        primary.server.stop("immediate")
        callers.wait_over()
    return callers


def test_asynchronous_under_load_a_receiver_is_ahead_and_takes_what_is_new_once_it_was_told(
    primary: Database, service: Database, tmp_path: Path
) -> None:
    port = free_port()
    # The leases of the applier that is lost are promoted too, and have to run out.
    calls = "SELECT inturn.create_topic('calls', %s, lease => '1 second')"
    primary.execute(calls, [f"http://127.0.0.1:{port}/"])
    with standby_of(primary) as standby, ExitStack() as stack:
        wait_streaming(primary, "async")
        follower = database_on(standby, primary.name)
        stack.callback(follower.close)
        callers = lose_under_load(primary, follower, service, port)
        follower.close()
        standby.promote()
        promoted = database_on(standby, primary.name)
        stack.callback(promoted.close)
        check_verified(promoted)

        ends = "SELECT key, max(seq) FROM inturn.command_log GROUP BY key"
        left = dict(promoted.execute(ends))
        has = dict(service.execute("SELECT key, seq FROM inturn.accepted"))
        # Of each key the last ones are lost, although they were acknowledged and took effect.
        assert sorted(has) == sorted(KEYS) == sorted(left)
        assert all(has[key] > left[key] for key in KEYS)
        lost = set(callers.acknowledged) - set(promoted.execute("SELECT key, seq FROM inturn.command_log"))
        assert all(seq > left[key] for key, seq in lost)
        assert {key for key, _ in lost} == {*KEYS}
        # Why B has to be told: the number is given again, and B takes the new command for a repeat.
        caller = promoted.session(user=CALLER)
        ((again,),) = caller.execute("SELECT inturn.append('calls', 'k0', 'new')")
        caller.rollback()
        assert again == left["k0"] + 1
        assert not service.value("SELECT inturn.accept('calls', 'k0', %s, 1000000)", [again])

        tell_sender(promoted, service, tmp_path)
        promoted.execute(snippet("numbers that are taken"))
        service.execute(snippet("a receiver takes turns anew"))
        for key in (*KEYS, "k4"):
            promoted.execute("SELECT inturn.append('calls', %s, 'new')", [key])
        with posting(promoted, service, port):
            pending = "SELECT EXISTS (SELECT FROM inturn.ticket)"
            until(lambda: not promoted.value(pending), "everything is applied", patience=120)
        effects = service.execute("SELECT key, array_agg(seq ORDER BY id) FROM effect GROUP BY key")
        assert dict(effects) == {key: [*range(1, has.get(key, 0) + 2)] for key in (*KEYS, "k4")}
        assert sorted(service.execute("SELECT key, seq FROM effect WHERE name <> 'insert'")) == [
            (key, has.get(key, 0) + 1) for key in (*KEYS, "k4")
        ]
        assert not service.value("SELECT EXISTS (SELECT FROM effect WHERE name = 'lost')")
        check_verified(promoted)
