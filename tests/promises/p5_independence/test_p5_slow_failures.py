"""P5: what takes long before it fails shares no transaction with healthy commands when it is tried again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from support import shop
from support.database import Database, until
from support.roles import APPLIER, OWNER

from inturn.applier import Applier, Command, calls
from inturn.applier.inside.batch import OLDEST
from inturn.applier.inside.python import handler_calls, judge
from inturn.applier.inside.python_target import PythonTarget
from inturn.applier.inside.sql_target import SqlTarget
from inturn.applier.process.connections import Connections
from inturn.applier.stop import Stop

#: Workers widen their batches step by step, 1, 2, 4: the last of these keys share one with the bad one.
_HEALTHY = 12
_AGAIN = "UPDATE inturn.ticket SET ready_at = clock_timestamp() WHERE key = 'bad'"


def _open(database: Database, target: str) -> None:
    """Make a topic whose bad command takes long and fails, and then waits for a lock; it has failed once."""
    database.execute(
        "CREATE SCHEMA app; CREATE TABLE app.done (key text, at timestamptz DEFAULT clock_timestamp())"
    )
    database.execute("""
        CREATE FUNCTION app.apply(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            IF command.name = 'bad' THEN
                PERFORM pg_sleep(0.1), pg_advisory_xact_lock(77);
                RAISE EXCEPTION 'bad';
            ELSIF command.name = 'late' THEN
                PERFORM pg_sleep(1.1);
                RAISE EXCEPTION 'late';
            ELSIF command.name = 'quick' THEN
                RAISE EXCEPTION 'quick';
            ELSIF command.name = 'down' THEN
                RAISE EXCEPTION USING ERRCODE = '08001', MESSAGE = 'down';
            END IF;
            INSERT INTO app.done VALUES (command.key);
        END $$;
        GRANT USAGE ON SCHEMA app TO PUBLIC; GRANT INSERT ON app.done TO PUBLIC;
    """)
    database.execute(
        "SELECT inturn.create_topic('t', %s, backoff_base => '1 hour', backoff_cap => '1 hour')", [target]
    )
    database.execute("SELECT inturn.append('t', 'bad', 'bad')")


def _append_healthy(database: Database) -> None:
    database.execute("SELECT inturn.append('t', 'k' || n, 'do') FROM generate_series(1, %s) n", [_HEALTHY])
    database.execute(_AGAIN)


def _handlers() -> Applier:
    applier = Applier()

    @applier.handler("t")
    def apply(connection: psycopg.Connection[Any], command: Command) -> None:
        connection.execute(
            "SELECT app.apply(ROW(%s, %s, %s, %s, '{}', now(), 1)::inturn.command)",
            [command.topic, command.key, command.seq, command.name],
        )

    return applier


def _target(by: str) -> PythonTarget | SqlTarget:
    if by == "sql":
        return SqlTarget("t", "inturn", "me", Stop())
    return PythonTarget("t", _handlers(), Stop(), "inturn", "me")


@contextmanager
def _applied(database: Database, by: str) -> Iterator[None]:
    """Apply while the block runs, by one worker or one CALL."""
    if by == "call":
        session = database.session(user=APPLIER, autocommit=True)
        session.execute("SET inturn.careful_keys = 0")
        running = session.begin("CALL inturn.apply()")
        yield
        running.result(60)
    else:
        with shop.at_work(database, _handlers() if by == "python" else Applier(), workers=1):
            yield


@pytest.mark.parametrize("by", ["python", "sql", "call"])
def test_p5_healthy_commands_do_not_wait_for_the_commit_of_one_that_took_long_to_fail(
    database: Database, by: str
) -> None:
    _open(database, "python" if by == "python" else "sql:app.apply")
    attempts = "SELECT attempts FROM inturn.key_cursor WHERE key = 'bad'"
    with _applied(database, by):
        until(lambda: database.value(attempts) == 1, "the first failure")
    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted"
    with database.connect(user=OWNER) as holder:
        holder.execute("SELECT pg_advisory_lock(77)")
        _append_healthy(database)
        with _applied(database, by):
            until(lambda: database.value(waits), "the second attempt to wait for its lock")
            done = database.value("SELECT count(*) FROM app.done")
            holder.execute("SELECT pg_advisory_unlock(77)")
            until(lambda: database.value(attempts) == 2, "the second failure")
    assert done == _HEALTHY


def test_p5_what_failed_quickly_shares_a_transaction_when_it_is_tried_again(database: Database) -> None:
    """A commit of its own would cost more than its attempt."""
    _open(database, "sql:app.apply")
    batch = "SELECT keys, commands, failures, redo FROM inturn.apply_batch('t', '-infinity', 20, 'me')"
    with database.connect(user=APPLIER) as session:
        assert session.execute(batch).fetchone() == (1, 0, 1, False)
        _append_healthy(database)
        assert session.execute(batch).fetchone() == (_HEALTHY + 1, 0, 0, True)
        database.execute("UPDATE inturn.turn SET started_at = finished_at - interval '99 ms'")
        assert session.execute(batch).fetchone() == (_HEALTHY + 1, _HEALTHY, 1, False)


@pytest.mark.parametrize("how", ["quick", "down"])
@pytest.mark.parametrize("by", ["python", "sql"])
def test_p5_what_fails_behind_others_of_its_transaction_took_no_longer_than_its_own_time(
    database: Database, by: str, how: str
) -> None:
    """Those who are taken alone for it would wait for nothing."""
    _open(database, "python" if by == "python" else "sql:app.apply")
    database.execute("SELECT inturn.cancel_rest('t', 'bad', 'not this one')")
    database.execute("SELECT inturn.append('t', 'bad', %s)", [how])
    began = "SELECT max(u.started_at) FROM inturn.turn u WHERE u.key = %s AND u.outcome = 'retrying'"
    effect = "SELECT max(at) FROM app.done WHERE key = %s"
    target = _target(by)
    with Connections(database.applier_dsn, None).connect() as worker:
        assert target.apply_batch(worker, OLDEST, 20).failures == 1
        database.execute("UPDATE inturn.turn SET started_at = finished_at")  # on a busy machine it took long
        database.execute("SELECT inturn.append('t', 'healthy', 'do')")
        database.execute(_AGAIN)  # it is the last one of the next batch
        batch = target.apply_batch(worker, OLDEST, 20)
        assert (batch.keys, batch.commands, batch.failures) == (2, 1, 1)
        assert database.value(began, ["bad"]) > database.value(effect, ["healthy"])
        # Alone, it comes behind those of its key.
        for name in ("do", how):
            database.execute("SELECT inturn.append('t', 'deep', %s)", [name])
        batch = target.apply_alone(worker, OLDEST)
        assert (batch.keys, batch.commands, batch.failures) == (1, 1, 1)
        assert database.value(began, ["deep"]) > database.value(effect, ["deep"])


def test_p5_what_a_handler_takes_is_not_what_those_after_it_take(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failures are recorded at the end of the transaction."""
    now, took = [0.0], list[float]()
    clock = SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0])
    for module in (handler_calls, judge):
        monkeypatch.setattr(module, "time", clock)
    fail = calls.turn.fail

    def recorded(*arguments: Any) -> Any:
        took.append(arguments[-1])
        return fail(*arguments)

    monkeypatch.setattr(calls.turn, "fail", recorded)
    database.execute("SELECT inturn.create_topic('t', backoff_base => '1 hour', backoff_cap => '1 hour')")
    applier = Applier()

    @applier.handler("t")
    def apply(connection: psycopg.Connection[Any], command: Command) -> None:
        now[0] += float(command.name)
        raise ValueError(command.name)

    target = PythonTarget("t", applier, Stop(), "inturn", "me")
    with Connections(database.applier_dsn, None).connect() as worker:
        for seconds in (1, 50, 3):
            database.execute("SELECT inturn.append('t', 'k' || %s, %s::text)", [seconds, seconds])
            assert target.apply_batch(worker, OLDEST, 20).failures == 1
        database.execute("UPDATE inturn.turn SET started_at = finished_at")
        database.execute(
            "UPDATE inturn.ticket SET ready_at = clock_timestamp(); DELETE FROM inturn.saved_pass"
        )
        assert target.apply_batch(worker, OLDEST, 20).failures == 3
    assert sorted(took[-3:]) == [1.0, 3.0, 50.0]


def test_p5_how_long_a_command_took_is_what_its_applier_says_within_its_transaction(
    database: Database,
) -> None:
    _open(database, "sql:app.apply")
    claim = "SELECT epoch FROM inturn.claim('t')"
    fail = "SELECT inturn.fail('t', 'bad', %s, 1, 1, 'no', 'me', took => %s)"
    length = "SELECT started_at, finished_at - started_at FROM inturn.turn ORDER BY epoch DESC LIMIT 1"
    for took, least in (("50 ms", 0.05), ("-1 hour", 0.0), (None, 0.0), ("1 hour", 0.0)):
        database.execute(_AGAIN)
        with database.connect(user=APPLIER, autocommit=False) as session:
            ((began_at,),) = session.execute("SELECT now()").fetchall()
            session.execute("SELECT pg_sleep(0.06)")
            ((epoch,),) = session.execute(claim).fetchall()
            session.execute(fail, [epoch, took])
        ((started_at, lasted),) = database.execute(length)
        assert lasted.total_seconds() >= least, took
        assert (started_at == began_at) is (took in {None, "1 hour"}), took


@pytest.mark.parametrize("by", ["python", "sql", "call"])
def test_p5_a_first_failure_that_takes_longer_than_a_visit_is_charged_and_the_others_go_on(
    database: Database, by: str
) -> None:
    """The batch is undone by then, and its keys are taken alone: in this visit, not by the next one."""
    _open(database, "python" if by == "python" else "sql:app.apply")
    database.execute("SELECT inturn.cancel_rest('t', 'bad', 'not this one')")
    database.execute("SELECT inturn.append('t', 'k' || n, 'do') FROM generate_series(1, %s) n", [_HEALTHY])
    database.execute("SELECT inturn.append('t', 'late', 'late')")
    attempts = "SELECT max(attempts) FROM inturn.key_cursor WHERE key = 'late'"
    with _applied(database, by):
        until(lambda: database.value(attempts) == 1, "its failure")
        until(lambda: database.value("SELECT count(*) FROM app.done") == _HEALTHY, "the others")
