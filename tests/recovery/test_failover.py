"""A streaming standby that is promoted while callers, appliers and a receiver work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from support.database import Database, until
from support.moved import CopiedServer, check_verified, database_on, open_witness
from support.own_server import own_database
from support.server import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: Nothing of the promoted server waits for a standby of its own.
_STANDBY = """
primary_conninfo = '{conninfo} application_name=standby'
synchronous_standby_names = ''
hot_standby = on
"""


class Callers:
    """Callers that append until the server is gone, each to its own key, and know what was acknowledged."""

    def __init__(self, database: Database, number: int = 4) -> None:
        self.acknowledged: list[tuple[str, int]] = []
        self._threads = [
            threading.Thread(target=self._append, args=(database.caller_dsn, f"k{n}")) for n in range(number)
        ]

    def _append(self, dsn: str, key: str) -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                while True:
                    row = connection.execute("SELECT inturn.append('orders', %s, 'insert')", [key]).fetchone()
                    assert row is not None
                    self.acknowledged.append((key, row[0]))
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
        end = primary.value("SELECT pg_current_wal_lsn()")
        follower = database_on(standby, primary.name)
        until(
            lambda: follower.value("SELECT pg_last_wal_replay_lsn() >= %s", [end]), "the standby has it all"
        )
        # From here on the standby gets nothing, as when the network is cut.
        follower.administer("ALTER SYSTEM SET primary_conninfo = ''")
        follower.administer("SELECT pg_reload_conf()")
        until(lambda: not primary.value("SELECT count(*) FROM pg_stat_replication"), "the standby is cut off")
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
