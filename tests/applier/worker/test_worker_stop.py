"""The end of `inturn apply`: by signal, by grace, by --max-seconds."""

from __future__ import annotations

import signal
import threading
from typing import Any, NoReturn, cast

import psycopg
import pytest
from support.database import Database, until
from support.process import inturn_apply, run_apply
from support.shop import (
    append,
    append_keys,
    applied,
    applier,
    apply_all,
    assert_once_and_in_turn,
    count_applied,
    gate_shut,
    open_shop,
    wait_at_gate,
)

from inturn.applier import Applier, Fleet
from inturn.applier.inside.worker import Worker
from inturn.applier.process.connections import Connections, FirstConnection
from inturn.applier.process.crew import Crew
from inturn.applier.process.totals import Totals

_SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@_SIGNALS
def test_a_signal_ends_an_idle_worker_at_once(database: Database, number: signal.Signals) -> None:
    open_shop(database)
    with inturn_apply(database.dsn, "--workers", "2") as process:
        append(database, "a", "insert")
        until(lambda: applied(database, "a"), "at work")
        process.send(number)
        assert process.exit_code() == 0
        assert "applied 1 command " in process.out


def test_a_stop_lets_the_command_in_hand_end_and_takes_no_further_one(database: Database) -> None:
    open_shop(database)
    append(database, "a", "insert", "after", "insert", "insert")
    fleet = Fleet(database.applier_dsn, applier)
    with gate_shut(database) as gate:
        fleet.start()
        wait_at_gate(database)
        fleet.request_stop()
        gate.rollback()
        assert fleet.wait(60)
    outcome = fleet.end(0)
    assert (outcome.commands, outcome.failures, outcome.cut) == (2, 0, False)
    # The two behind it in the same turn are not done, and what is done is committed.
    assert applied(database, "a") == [1, 2]
    assert database.execute("SELECT applied_seq, attempts FROM inturn.key_cursor") == [(2, 0)]
    assert database.execute("SELECT from_seq, to_seq, outcome FROM inturn.turn") == [(1, 2, "applied")]
    apply_all(database)
    assert applied(database, "a") == [1, 2, 3, 4]
    assert_once_and_in_turn(database)


@_SIGNALS
def test_a_signal_ends_a_process_within_a_turn_and_keeps_what_is_done(
    database: Database, number: signal.Signals
) -> None:
    open_shop(database, settings="batch_commands => 10000")
    behind = 5_000
    append(database, "a", "after", *["insert"] * behind)
    with gate_shut(database) as gate, inturn_apply(database.dsn) as process:
        wait_at_gate(database)
        process.send(number)
        gate.rollback()
        assert process.exit_code() == 0
    done = count_applied(database)
    assert 1 <= done < behind
    assert database.execute("SELECT applied_seq, attempts FROM inturn.key_cursor") == [(done, 0)]
    assert applied(database, "a") == list(range(1, done + 1))


def test_when_the_grace_is_over_the_command_is_cut_off_and_another_worker_does_it(
    database: Database,
) -> None:
    open_shop(database)
    append(database, "a", "insert", "after", "insert")
    append(database, "b", "insert")
    with gate_shut(database) as gate:
        with inturn_apply(database.dsn, "--grace", "0.2", "--max-keys", "1") as process:
            wait_at_gate(database)
            process.send(signal.SIGTERM)
            assert process.exit_code() == 6
            assert "cut off" in process.out
        # Its backend is gone too, though its statement would still wait: the key is free.
        until(
            lambda: (
                database.value(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name = 'inturn apply'"
                )
                == 0
            ),
            "the end of its backend",
        )
        assert applied(database, "a") == []
        # Cut off is no failure: no attempt is counted, nothing recorded.
        assert database.execute(
            "SELECT applied_seq, attempts, last_error FROM inturn.key_cursor WHERE key = 'a'"
        ) == [(0, 0, None)]
        gate.rollback()
    assert run_apply(database.dsn, "--drain")[0] == 0
    assert applied(database, "a") == [1, 2, 3]
    assert_once_and_in_turn(database)


def test_a_second_signal_cuts_the_grace_short(database: Database) -> None:
    open_shop(database)
    append(database, "a", "after")
    with gate_shut(database), inturn_apply(database.dsn, "--grace", "3600") as process:
        wait_at_gate(database)
        # Two of the same number that come at once would count as one.
        process.send(signal.SIGTERM)
        process.send(signal.SIGINT)
        assert process.exit_code() == 6
    assert count_applied(database) == 0


def test_max_seconds_ends_a_daemon_and_a_drain_with_what_is_done_kept(database: Database) -> None:
    open_shop(database, settings="batch_commands => 1")
    with inturn_apply(database.dsn, "--max-seconds", "0.2") as process:
        assert process.exit_code() == 0
    append(database, "a", "before", "insert")
    with (
        gate_shut(database),
        inturn_apply(database.dsn, "--drain", "--max-seconds", "5", "--grace", "0.1") as process,
    ):
        assert process.exit_code() == 6
    assert run_apply(database.dsn, "--drain", "--max-seconds", "60")[0] == 0
    assert_once_and_in_turn(database)


def test_max_seconds_bounds_a_drain_that_never_ends(database: Database) -> None:
    open_shop(database, settings="batch_commands => 1")
    database.execute("""
        SELECT inturn.append_many('shop', array_fill('deep'::text, ARRAY[20000]),
                                  array_fill('insert'::text, ARRAY[20000]))
    """)

    def drain() -> tuple[int, str]:
        """Run it for a while, which is over before the first command where the machine stands still."""
        code, out, _ = run_apply(database.dsn, "--drain", "--max-seconds", "0.5")
        assert code == 0
        return count_applied(database), out

    done, out = until(lambda: (found := drain())[0] and found, "a drain that has begun")
    assert done < 20_000
    assert f"applied {done:,} commands" in out
    assert applied(database, "deep") == list(range(1, done + 1))


def test_drain_ends_when_nothing_is_ready_and_leaves_what_waits_for_its_retry(
    database: Database,
) -> None:
    open_shop(database, settings="backoff_base => '1 hour', backoff_cap => '1 hour'")
    append_keys(database, 100)
    append(database, "a", "insert", "fail")
    code, out, _ = run_apply(database.dsn, "--drain", "--workers", "2")
    assert code == 0
    assert "applied 101 commands" in out
    assert "1 failed" in out
    assert count_applied(database) == 101


def test_overlapping_drains_share_the_work_and_repeat_none(database: Database) -> None:
    open_shop(database, settings="batch_commands => 2")
    append(database, "a", "after")
    append(database, "b", "after")
    with (
        gate_shut(database) as gate,
        inturn_apply(database.dsn, "--drain") as first,
        inturn_apply(database.dsn, "--drain") as second,
    ):
        wait_at_gate(database, 2)
        for _ in range(4):
            append_keys(database, 100)
        gate.rollback()
        assert first.exit_code() == second.exit_code() == 0
    assert run_apply(database.dsn, "--drain")[0] == 0
    processes = "SELECT count(DISTINCT split_part(applier, ':', 2)) FROM inturn.turn"
    assert database.value(processes) == 2, "the two had all the work"
    assert_once_and_in_turn(database)


def test_a_process_that_has_cut_a_command_off_waits_for_no_database(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That may be why the command did not end: the attempt to connect takes 20 seconds for each address."""
    monkeypatch.setattr("inturn.applier.fleet._CANCEL_SECONDS", 0.1)
    monkeypatch.setattr("inturn.applier.fleet._COUNT_SECONDS", 0.1)
    open_shop(database)
    handlers, in_hand, release = Applier(), threading.Event(), threading.Event()

    @handlers.handler("shop")
    def stay(connection: object, command: object) -> None:
        in_hand.set()
        release.wait(60)

    def connect(_connections: Connections) -> NoReturn:
        release.wait(60)
        raise psycopg.OperationalError("away")

    fleet = Fleet(database.applier_dsn, handlers)
    fleet.start()
    try:
        append(database, "a", "insert")
        assert in_hand.wait(60)
        with monkeypatch.context() as away:
            away.setattr(Connections, "connect", connect)
            outcome = fleet.end(0)
        assert (outcome.cut, outcome.held, release.is_set()) == (True, None, False)
        assert not fleet.wait(0), "nothing has released the command meanwhile"
    finally:
        release.set()
        fleet.wait(60)


class _Away:
    """A worker whose server is away: its cancel takes until those of the others have begun."""

    def __init__(self, together: threading.Barrier) -> None:
        self.abandoned, self.error, self.totals = False, None, Totals()
        self._together, self._cut = together, threading.Event()

    def run(self) -> None:
        self._cut.wait(120)

    def cancel(self) -> None:
        self._together.wait(60)
        self._cut.set()


def test_workers_whose_server_is_away_are_cut_off_together() -> None:
    """One after the other, each for seconds, would be longer than a supervisor waits."""
    crew, together = Crew(lambda: None), threading.Barrier(8)
    for number in range(8):
        crew.add(cast(Worker, _Away(together)), f"worker {number}")
    crew.cancel()
    assert crew.wait(90)
    assert not together.broken


def test_a_process_that_gets_no_more_threads_cuts_off_and_ends_all_the_same(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_shop(database)
    handlers, in_hand = Applier(), threading.Event()

    @handlers.handler("shop")
    def stay(connection: psycopg.Connection[object], command: object) -> None:
        in_hand.set()
        connection.execute("SELECT pg_sleep(600)")

    def start(_thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    fleet = Fleet(database.applier_dsn, handlers)
    fleet.start()
    append(database, "a", "insert")
    assert in_hand.wait(60)
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", start)
        outcome = fleet.end(0)
    assert (outcome.cut, outcome.held, outcome.error) == (True, None, None)
    assert fleet.wait(60), "the command was cancelled"


def test_a_worker_that_only_connects_has_nothing_that_could_be_cut_off(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server is away: that takes 20 seconds for each address, longer than many a grace."""
    open_shop(database)
    connecting, release, connect = threading.Event(), threading.Event(), Connections.connect

    def away(connections: Connections) -> psycopg.Connection[Any]:
        if not threading.current_thread().name.startswith("inturn-worker"):
            return connect(connections)
        connecting.set()
        release.wait(60)
        raise psycopg.OperationalError("away")

    def lost(first: FirstConnection) -> psycopg.Connection[Any]:
        first.close()
        return away(first._connections)

    monkeypatch.setattr(Connections, "connect", away)
    monkeypatch.setattr(FirstConnection, "take", lost)
    fleet = Fleet(database.applier_dsn, applier)
    fleet.start()
    try:
        assert connecting.wait(60)
        assert not fleet.wait(0), "it may be back at any moment"
        outcome = fleet.end(0)
        assert (outcome.cut, outcome.error) == (False, None)
    finally:
        release.set()


@pytest.mark.parametrize("drain", [True, False])
def test_a_daemon_that_ends_waits_for_no_database_and_a_drain_says_what_is_held(
    database: Database, monkeypatch: pytest.MonkeyPatch, *, drain: bool
) -> None:
    """It may be asked to end because the database is away; on what a drain says depends its exit code."""
    monkeypatch.setattr("inturn.applier.fleet._COUNT_SECONDS", 0.1)
    open_shop(database)
    answer, connect = threading.Event(), Connections.connect

    def slow(connections: Connections) -> psycopg.Connection[Any]:
        answer.wait(0.3 if drain else 60)
        return connect(connections)

    fleet = Fleet(database.applier_dsn, applier, drain=drain)
    fleet.start()
    fleet.request_stop()
    assert fleet.wait(60)
    with monkeypatch.context() as away:
        away.setattr(Connections, "connect", slow)
        outcome = fleet.end(0)
        assert (outcome.held, answer.is_set()) == (0 if drain else None, False)
        answer.set()
