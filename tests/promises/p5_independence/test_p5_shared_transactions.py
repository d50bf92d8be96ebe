"""P5: what ends a transaction, or its session, is charged to no other command that shared it."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from support import shop
from support.database import Database, until

from inturn.applier import Applier, Batch, Command, calls, pacing
from inturn.applier.calls.call import Call, nothing, statement
from inturn.applier.inside.batch import OLDEST
from inturn.applier.inside.python_target import PythonTarget
from inturn.applier.inside.visits import Visits
from inturn.applier.metrics.tallies import Tallies
from inturn.applier.process.connections import Connections
from inturn.applier.process.totals import Totals
from inturn.applier.stop import Bell, Stop

_STATE = "SELECT applied_seq, attempts, held_at IS NOT NULL FROM inturn.key_cursor WHERE key = 'k'"
_ENDED = "SELECT inturn.key_state(c) IN ('idle', 'held') FROM inturn.key_cursor c WHERE key = 'k'"


def _open(database: Database, count: int, target: str = "python", timeout: str = "") -> None:
    database.execute("CREATE SCHEMA app; CREATE TABLE app.done (seq bigint)")
    database.execute("""
        CREATE FUNCTION app.apply(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO app.done VALUES (command.seq);
            PERFORM pg_sleep(60) WHERE command.name = 'bad';
        END $$;
    """)
    database.execute(
        "SELECT inturn.create_topic('t', %s, max_attempts => 1, backoff_base => '10 ms')", [target]
    )
    for number in range(1, count + 1):
        database.execute("SELECT inturn.append('t', 'k', %s)", ["bad" if number == 2 else "do"])
    if timeout and database.server.version >= 17:  # which has no such timeout before
        database.execute(f"ALTER DATABASE {database.name} SET transaction_timeout = '{timeout}'")


@pytest.mark.needs_version(17, "there is no transaction_timeout before")
@pytest.mark.parametrize("steady", [True, False], ids=["at work", "just started"])
def test_p5_a_transaction_timeout_ends_no_session_for_commands_that_are_quick(
    database: Database, *, steady: bool
) -> None:
    """Together they take longer than the timeout, and each does not."""
    _open(database, 2, timeout="3 s")
    applier = Applier()

    @applier.handler("t")
    def half(connection: psycopg.Connection[Any], command: Command) -> None:
        connection.execute("SELECT pg_sleep(1.6)")

    with shop.at_work(database, applier, workers=1, steady=steady):
        until(lambda: database.value(_ENDED), "the end of the key")
    assert database.execute(_STATE) == [(2, 0, False)]
    # No session has ended, and no turn was taken again.
    assert database.execute("SELECT DISTINCT outcome FROM inturn.turn") == [("applied",)]


@pytest.mark.parametrize(
    ("target", "ends_by"),
    [("python", "close"), ("python", "transaction_timeout"), ("sql:app.apply", "transaction_timeout")],
)
def test_p5_what_ends_the_session_of_a_turn_is_charged_to_no_command_before_it(
    database: Database, target: str, ends_by: str
) -> None:
    """Of several in one transaction nobody can tell which one it was: each is taken in one of its own."""
    _open(database, 3, target, timeout="2 s" if ends_by == "transaction_timeout" else "")
    if ends_by == "transaction_timeout" and database.server.version < 17:
        database.execute(f"ALTER DATABASE {database.name} SET statement_timeout = '2 s'")
    applier = Applier()

    @applier.handler("t")
    def apply(connection: psycopg.Connection[Any], command: Command) -> None:
        connection.execute("INSERT INTO app.done VALUES (%s)", [command.seq])
        if command.name == "bad" and ends_by == "close":
            connection.close()
        elif command.name == "bad":
            connection.execute("SELECT pg_sleep(60)")

    with shop.at_work(database, applier if target == "python" else Applier(), workers=1, steady=False):
        until(lambda: database.value(_ENDED), "the end of the key", 60)
    assert database.execute(_STATE) == [(1, 1, True)]
    assert database.execute("SELECT seq FROM app.done") == [(1,)]


def test_p5_a_handler_that_commits_is_charged_although_another_worker_was_quicker_to_claim_its_key(
    database: Database,
) -> None:
    """Its claim goes with the transaction; so would the other one's, and each found the key in hand."""
    _open(database, 1)
    applier = Applier()
    second, goes_on = threading.Event(), threading.Event()
    calls: list[int] = []

    @applier.handler("t")
    def commit(connection: psycopg.Connection[Any], command: Command) -> None:
        calls.append(connection.info.backend_pid)
        if len(calls) == 1:
            connection.execute("COMMIT")
            assert second.wait(60)
        else:
            second.set()
            assert goes_on.wait(60)
            connection.execute("COMMIT")

    waits = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND cardinality(pg_blocking_pids(pid)) > 0"
    with shop.at_work(database, applier, workers=2) as fleet:
        try:
            assert second.wait(60)
            until(lambda: database.value(waits, [calls[0]]), "the first one to wait for its key")
        finally:
            goes_on.set()
        until(lambda: database.value(_ENDED), "the end of the key")
    assert len(calls) == 2
    assert fleet.totals.failures == 1, "what the other one has recorded is not counted again"
    assert database.execute(_STATE) == [(0, 1, True)]
    assert "ended the transaction" in database.value("SELECT last_error FROM inturn.key_cursor")


def _visits(target: PythonTarget) -> Visits:
    return Visits(
        max_keys=50,
        careful=lambda _: 0,
        stop=target.stop,
        bell=Bell(1),
        sleep=SimpleNamespace(),  # type: ignore[arg-type]
        totals=Totals(),
        tallies=Tallies(),
        found=lambda: None,
    )


def test_p5_a_handler_that_commits_while_somebody_has_its_key_has_no_other_key_taken_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its failure cannot be recorded for as long as that takes, and is no reason to suspect others."""
    _open(database, 1)
    others = "SELECT count(inturn.append('t', 'other' || n, 'do')) FROM generate_series(1, 9) n"
    database.execute(others)
    waits = statement("SELECT pg_catalog.set_config('lock_timeout', '10 ms', true)")
    monkeypatch.setattr(calls.session, "bound", lambda: Call(waits, (), nothing))
    monkeypatch.setattr(pacing, "visit_seconds", lambda _: 60.0)
    somebody, applier, alone = database.session(), Applier(), list[Batch]()
    apply_alone = PythonTarget.apply_alone

    def recorded(self: PythonTarget, connection: psycopg.Connection[Any], since: Any) -> Batch:
        alone.append(apply_alone(self, connection, since))
        return alone[-1]

    monkeypatch.setattr(PythonTarget, "apply_alone", recorded)

    @applier.handler("t")
    def apply(connection: psycopg.Connection[Any], command: Command) -> None:
        if command.key == "k":
            connection.execute("COMMIT")
            if not alone:
                somebody.execute("SELECT FROM inturn.ticket WHERE key = 'k' FOR UPDATE")
        else:
            connection.execute("INSERT INTO app.done VALUES (%s)", [command.seq])

    target = PythonTarget("t", applier, Stop(), "inturn", "host:1:1")
    visits = _visits(target)
    visits._seconds_per_key["t"] = 0.0  # all keys share a transaction
    with Connections(database.applier_dsn, None).connect() as worker:
        assert visits.visit(worker, target, OLDEST).emptied
        assert [batch.commands for batch in alone] == [1], "the key after it, once"
        assert database.value("SELECT count(*) FROM app.done") == 9
        assert database.execute(_STATE) == [(0, 0, False)]
        somebody.rollback()
        assert visits.visit(worker, target, OLDEST).emptied
    assert database.execute(_STATE) == [(0, 1, True)]
