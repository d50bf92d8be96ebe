"""P7: effects in the same database happen exactly once, whatever dies at whatever moment."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal

import psycopg
import pytest
from support.combinations import sizes
from support.database import Database, until
from support.process import inturn_apply, run_apply
from support.proxy import Proxy
from support.roles import APPLIER, CALLER
from support.server import Server
from support.shop import (
    TARGETS,
    TOPIC,
    Target,
    after_restart,
    append,
    append_keys,
    applied,
    apply_all,
    assert_once_and_in_turn,
    at_work,
    count_applied,
    gate_shut,
    open_shop,
    wait_at_gate,
    write_witness,
)

from inturn.applier import Applier, Command
from inturn.applier.inside.batch import OLDEST
from inturn.applier.inside.python_target import PythonTarget
from inturn.applier.stop import Stop

_APPEND = "SELECT inturn.append('shop', %s, %s, '{}', %s)"
_PLACES = pytest.mark.parametrize("place", ["before", "after", "commit"])


def _alive(database: Database, pids: list[int]) -> bool:
    return bool(database.value("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY (%s)", [pids]))


@_PLACES
def test_an_applier_killed_before_after_and_in_the_commit_of_its_work_has_it_done_once(
    database: Database, place: str
) -> None:
    open_shop(database)
    append(database, "a", "insert", place, "delete")
    append(database, "b", "insert")
    with gate_shut(database) as gate:
        with inturn_apply(database.dsn) as process:
            pids = wait_at_gate(database)
            process.kill()
        # Its backend does not know yet: the key stays claimed, for it may yet commit.
        assert apply_all(database).commands <= 1
        assert applied(database, "a") == []
        gate.rollback()
        until(lambda: not _alive(database, pids), "the end of the killed applier's backend")
    # What the database would look at in COMMIT is looked at before: nothing of it is left.
    assert applied(database, "a") == []
    # The key was claimed by a lease of a second too.
    until(lambda: run_apply(database.dsn, "--drain")[0] or applied(database, "a"), "the end of its lease")
    assert applied(database, "a") == [1, 2, 3]
    assert_once_and_in_turn(database)


@pytest.mark.each_value
@_PLACES
@pytest.mark.parametrize("target", TARGETS)
def test_a_backend_terminated_before_after_and_in_the_commit_of_its_work_has_it_done_once(
    database: Database, target: Target, place: str
) -> None:
    open_shop(database, target=target)
    with at_work(database):
        with gate_shut(database):
            append(database, "a", "insert", place, "delete")
            for pid in wait_at_gate(database):
                database.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
            assert applied(database, "a") == []
        until(lambda: len(applied(database, "a")) >= 3, "the effects, after connecting again")
    assert_once_and_in_turn(database)
    # A lost connection is no failure of the command.
    assert database.value("SELECT count(*) FROM inturn.turn WHERE outcome <> 'applied'") == 0


def test_a_handler_that_kills_its_process_leaves_nothing_behind(database: Database) -> None:
    open_shop(database)
    append(database, "a", "insert", "die")
    assert run_apply(database.dsn, "--drain")[0] == -9
    until(
        lambda: (
            database.value("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'inturn apply'")
            == 0
        ),
        "the end of its backends",
    )
    assert count_applied(database) == 0
    assert database.execute("SELECT applied_seq, attempts FROM inturn.key_cursor") == [(0, 0)]


def _wait_for_more(database: Database, more: int) -> None:
    goal = count_applied(database) + more
    until(lambda: count_applied(database) >= goal, f"{more} more effects", 60)


@sizes("times", 2, rest=5)
def test_processes_killed_again_and_again_apply_everything_once(database: Database, times: int) -> None:
    open_shop(database, settings="batch_commands => 5")
    chance, kills = random.Random(7), 0
    while kills < times:
        for _ in range(5):
            for name in ("insert", "update", "delete"):
                append_keys(database, 40, name=name)
        with inturn_apply(database.dsn, "--workers", "2", "--max-keys", "4"):
            _wait_for_more(database, chance.randrange(20, 200))
        kills += not _drained(database)  # otherwise it was through before it was killed
    until(lambda: run_apply(database.dsn, "--drain") and _drained(database), "drained")
    assert_once_and_in_turn(database)


def _drained(database: Database) -> bool:
    return bool(database.value("SELECT count(*) = 0 FROM inturn.key_cursor WHERE ready_at IS NOT NULL"))


@sizes("rounds", 3, rest=6)
@pytest.mark.parametrize("target", TARGETS)
def test_backends_terminated_at_random_apply_everything_once(
    database: Database, target: Target, rounds: int
) -> None:
    open_shop(database, target=target, settings="batch_commands => 5")
    for _ in range(6 * rounds):
        append_keys(database, 40)
    with at_work(database, workers=2, max_keys=4):
        for _ in range(rounds):
            _wait_for_more(database, 30)
            killed = database.execute("""
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = 'inturn apply'""")
            assert killed
        until(lambda: _drained(database), "drained", 60)
    assert_once_and_in_turn(database)


@pytest.fixture
def own_server(server: Server) -> Iterator[Server]:
    """A server that a test may crash."""
    own = Server(server.version)
    own.start()
    yield own
    own.remove()


class _Callers:
    """Threads that append to a few keys each until told to stop, whatever happens to the server."""

    def __init__(self, dsn: str, count: int) -> None:
        self.acknowledged: dict[str, list[int]] = defaultdict(list)
        self._over = threading.Event()
        self._dsn = dsn
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    @property
    def count(self) -> int:
        return sum(len(seqs) for seqs in list(self.acknowledged.values()))

    def _call(self, caller: int) -> None:
        number = 0
        while not self._over.is_set():
            with suppress(psycopg.OperationalError), psycopg.connect(self._dsn) as connection:
                while not self._over.is_set():
                    number += 1
                    key = f"caller{caller}-{number % 3}"
                    row = connection.execute(_APPEND, [key, "insert", None]).fetchone()
                    connection.commit()
                    assert row is not None
                    self.acknowledged[key].append(row[0])
            self._over.wait(0.02)  # the server is down: no busy waiting

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def _crash_under_load(server: Server, rounds: int, floor: int) -> None:
    database = Database(server, "crash")
    database.install()
    open_shop(database)

    def ask(query: str) -> Any:
        # Each time anew: the server comes and goes.
        try:
            with psycopg.connect(database.dsn, autocommit=True) as connection:
                row = connection.execute(query).fetchone()
                return row[0] if row else None
        except psycopg.OperationalError:
            return 0

    def wait_for_progress() -> None:
        applied_goal = ask("SELECT count(*) FROM app.witness") + floor
        acknowledged_goal = callers.count + floor
        until(lambda: ask("SELECT count(*) FROM app.witness") >= applied_goal, "appliers go on", 60)
        until(lambda: callers.count >= acknowledged_goal, "callers go on", 60)

    callers = _Callers(database.caller_dsn, 3)
    try:
        with at_work(database, workers=2):
            for _ in range(rounds):
                wait_for_progress()
                server.stop("immediate")
                server.start()
            callers.stop()
            until(
                lambda: (
                    ask("SELECT count(*) FROM inturn.key_cursor WHERE ready_at IS NOT NULL") == 0
                    and ask("SELECT count(*) FROM app.witness") >= callers.count
                ),
                "drained",
                60,
            )
    finally:
        callers.stop()
    assert_once_and_in_turn(after_restart(database))
    for key, seqs in callers.acknowledged.items():
        assert seqs == sorted(seqs)
        assert set(seqs) <= set(applied(database, key))
    database.drop()


@sizes("rounds", 2, rest=5)
def test_a_server_crashed_again_and_again_under_load_loses_and_repeats_nothing(
    own_server: Server, rounds: int
) -> None:
    _crash_under_load(own_server, rounds, floor=100)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_server_crashed_thirty_times_under_load_loses_and_repeats_nothing(
    own_server: Server,
) -> None:
    _crash_under_load(own_server, rounds=30, floor=500)


Cut = Literal["request", "reply"]


@pytest.mark.parametrize("what", ["request", "reply"])
@pytest.mark.parametrize("before", ["new key", "idle key", "busy key"])
def test_a_caller_cut_off_in_its_commit_appends_once_by_its_idempotency_key(
    database: Database, what: Cut, before: str
) -> None:
    open_shop(database)
    expected = 1
    if before != "new key":
        append(database, "a", "first")
        expected = 2
    if before == "idle key":
        apply_all(database)
    with Proxy(database.server) as proxy:
        proxy.cut_at(b"COMMIT", what)
        with psycopg.connect(proxy.dsn(database.name, CALLER)) as connection:
            row = connection.execute(_APPEND, ["a", "insert", "request-1"]).fetchone()
            assert row == (expected,)
            with pytest.raises(psycopg.OperationalError):
                connection.commit()
        assert proxy.cuts == 1
        with psycopg.connect(proxy.dsn(database.name, CALLER)) as connection:
            row = connection.execute(_APPEND, ["a", "insert", "request-1"]).fetchone()
            assert row == (expected,)
        with psycopg.connect(proxy.dsn(database.name, CALLER)) as connection:
            assert connection.execute(_APPEND, ["a", "delete", None]).fetchone() == (expected + 1,)
    apply_all(database)
    assert applied(database, "a") == list(range(1, expected + 2))
    assert_once_and_in_turn(database)


@pytest.mark.each_value
@pytest.mark.parametrize("what", ["request", "reply"])
@pytest.mark.parametrize("target", TARGETS)
def test_an_applier_cut_off_in_its_commit_applies_once(database: Database, target: Target, what: Cut) -> None:
    open_shop(database, target=target)
    with Proxy(database.server) as proxy:
        proxy.cut_at(b"COMMIT", what)
        with at_work(database, dsn=proxy.dsn(database.name, APPLIER)):
            append(database, "a", "insert", "update")
            until(lambda: proxy.cuts == 1, "the cut")
            append(database, "a", "delete")
            until(lambda: len(applied(database, "a")) >= 3, "the effects, after connecting again")
    apply_all(database)
    assert_once_and_in_turn(database)


@pytest.mark.parametrize("target", TARGETS)
def test_a_failing_command_leaves_no_effect_and_what_came_before_it_has_one(
    database: Database, target: Target
) -> None:
    open_shop(database, target=target, settings="max_attempts => 2, backoff_base => '1 ms'")
    append(database, "a", "insert", "update", "fail", "delete")
    append_keys(database, 20)
    until(lambda: apply_all(database).held == 1, "held")
    assert applied(database, "a") == [1, 2]
    assert count_applied(database) == 22
    assert database.execute(
        "SELECT from_seq, to_seq, outcome FROM inturn.turn WHERE key = 'a' ORDER BY epoch"
    ) == [(1, 2, "retrying"), (3, 2, "held")]


def test_a_stop_while_what_came_before_a_failure_runs_again_loses_nothing(database: Database) -> None:
    open_shop(database)
    stop, handlers = Stop(), Applier()

    @handlers.handler(TOPIC)
    def handle(connection: psycopg.Connection[Any], command: Command) -> None:
        write_witness(connection, command)
        if command.name == "fail":
            # As SIGTERM does at this moment: 1 and 2 are about to be undone, and run again.
            stop.request()
            raise ValueError("refused")

    append(database, "a", "insert", "insert", "fail", "insert")
    connection = database.connect(user=APPLIER)
    PythonTarget(TOPIC, handlers, stop, "inturn", "stopped").apply_batch(connection, OLDEST, 1)
    applied_seq = database.value("SELECT applied_seq FROM inturn.key_cursor")
    assert count_applied(database) == applied_seq, "what is recorded as applied has its effect"

    @handlers.handler(TOPIC, "fail")
    def mended(connection: psycopg.Connection[Any], command: Command) -> None:
        write_witness(connection, command)

    target = PythonTarget(TOPIC, handlers, Stop(), "inturn", "next")
    until(
        lambda: target.apply_batch(connection, OLDEST, 1).keys == 0 and count_applied(database) == 4,
        "drained",
    )
    assert_once_and_in_turn(database)
    assert database.value("SELECT applied_seq FROM inturn.key_cursor") == 4
