"""P5: what takes long before it fails shares no transaction with healthy commands when it is tried again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from support import shop
from support.database import Database, until
from support.roles import APPLIER, OWNER

from inturn.applier import Applier, Command

#: Workers widen their batches step by step, 1, 2, 4: the last of these keys share one with the bad one.
_HEALTHY = 12
_AGAIN = "UPDATE inturn.ticket SET ready_at = clock_timestamp() WHERE key = 'bad'"


def _open(database: Database, target: str) -> None:
    """Make a topic whose bad command takes long and fails, and then waits for a lock; it has failed once."""
    database.execute("CREATE SCHEMA app; CREATE TABLE app.done (key text)")
    database.execute("""
        CREATE FUNCTION app.apply(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            IF command.name = 'bad' THEN
                PERFORM pg_sleep(0.1), pg_advisory_xact_lock(77);
                RAISE EXCEPTION 'bad';
            ELSIF command.name = 'late' THEN
                PERFORM pg_sleep(1.1);
                RAISE EXCEPTION 'late';
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
