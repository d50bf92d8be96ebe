"""Handlers: what they get, and what becomes of those that misbehave."""

from __future__ import annotations

import dataclasses
import threading
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from support.database import Database, come_first, until
from support.roles import APPLIER
from support.shop import (
    TOPIC,
    append,
    append_keys,
    applied,
    apply_all,
    assert_once_and_in_turn,
    at_work,
    count_applied,
    open_shop,
    write_witness,
)

from inturn.applier import Applier, Command
from inturn.applier.inside.python_target import PythonTarget
from inturn.applier.stop import Stop

Connection = psycopg.Connection[Any]


def test_a_command_for_a_test_needs_no_more_than_an_append() -> None:
    one, other = Command(TOPIC, "a", 1, "insert"), Command(TOPIC, "a", 2, "insert")
    assert (one.payload, one.attempt, one.epoch) == ({}, 1, 1)
    assert one.payload is not other.payload
    assert one.created_at.utcoffset() is not None


def test_a_command_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Command(TOPIC, "a", 1, "insert").seq = 2  # type: ignore[misc]


def test_a_handler_gets_the_command_as_it_was_appended(database: Database) -> None:
    open_shop(database)
    got: list[Command] = []
    handlers = Applier()

    @handlers.handler(TOPIC)
    def keep(connection: Connection, command: Command) -> None:
        got.append(command)
        command.payload["mine"] = True
        if command.attempt == 1 and command.seq == 1:
            raise ValueError("once more")

    database.execute("""SELECT inturn.append('shop', E'k\\n%s', 'insert', '{"n": [1, null, "é"]}')""")
    until(lambda: apply_all(database, handlers) and len(got) == 2, "both attempts")
    first, second = got
    assert (first.topic, first.key, first.seq, first.name) == ("shop", "k\n%s", 1, "insert")
    assert (first.attempt, first.epoch, second.attempt, second.epoch) == (1, 1, 2, 2)
    assert second.payload == {"n": [1, None, "é"], "mine": True}
    assert first.payload is not second.payload
    assert first.created_at.tzinfo is not None


def test_an_unknown_name_fails_its_command_and_says_so_on_the_key(database: Database) -> None:
    open_shop(database, settings="max_attempts => 1")
    handlers = Applier()
    handlers.handler(TOPIC, "insert")(write_witness)
    append(database, "a", "insert", "vanish")
    assert apply_all(database, handlers).held == 1
    assert applied(database, "a") == [1]
    error = database.value("SELECT last_error FROM inturn.key_cursor")
    assert "no handler for command 'vanish' of topic 'shop'. Handlers there: 'insert'" in error


def test_a_failing_command_among_keys_that_share_a_transaction_fails_alone(
    database: Database,
) -> None:
    open_shop(database, settings="max_attempts => 1")
    append_keys(database, 40, prefix="good")
    append(database, "bad", "insert", "fail", "insert")
    append_keys(database, 40, prefix="more")
    outcome = apply_all(database)
    assert (outcome.commands, outcome.failures, outcome.held) == (81, 1, 1)
    assert applied(database, "bad") == [1]
    assert database.execute("SELECT key FROM inturn.key_cursor WHERE last_error IS NOT NULL") == [("bad",)]
    assert database.value("SELECT max(n) FROM (SELECT count(*) n FROM app.witness GROUP BY xid) x") > 1


def test_a_command_that_has_failed_before_is_tried_again_without_the_ones_behind_it(
    database: Database,
) -> None:
    open_shop(database, settings="backoff_base => '1 ms'")
    tries: list[tuple[int, int]] = []
    handlers = Applier()

    @handlers.handler(TOPIC)
    def third_time(connection: Connection, command: Command) -> None:
        tries.append((command.seq, command.attempt))
        write_witness(connection, command)
        if command.seq == 2 and command.attempt < 3:
            raise ValueError("not yet")

    append(database, "a", "insert", "insert", "insert")
    until(lambda: apply_all(database, handlers) and count_applied(database) == 3, "all")
    # 1, 2 fails; 1 again to be kept; 2 alone, fails; 2 alone; then the rest.
    assert tries == [(1, 1), (2, 1), (1, 1), (2, 2), (2, 3), (3, 1)]
    assert_once_and_in_turn(database)


def test_a_key_that_has_failed_shares_no_outcome_with_fresh_ones(database: Database) -> None:
    """A key in its second attempt does not make the fresh keys of its batch run twice."""
    open_shop(database, settings="backoff_base => '1 ms'")
    runs: list[str] = []
    handlers = Applier()

    @handlers.handler(TOPIC)
    def count(connection: Connection, command: Command) -> None:
        runs.append(command.key)
        if command.name == "fail":
            raise ValueError("always")

    target = PythonTarget(TOPIC, handlers, Stop(), "inturn", "test")
    append(database, "bad", "fail")
    target.apply_batch(database.connect(user=APPLIER), "-infinity", 1)
    append_keys(database, 3)
    # All four in one batch: the claim takes them in this order.
    come_first(database, "bad")
    runs.clear()
    batch = target.apply_batch(database.connect(user=APPLIER), "-infinity", 4)
    assert (batch.keys, batch.commands, batch.failures, batch.redo) == (4, 3, 1, False)
    assert sorted(runs) == ["bad", "k1", "k2", "k3"]


def test_a_statement_timeout_in_a_handler_is_a_failure_of_the_command(database: Database) -> None:
    open_shop(database, settings="max_attempts => 1")
    handlers = Applier()

    @handlers.handler(TOPIC)
    def slow(connection: Connection, command: Command) -> None:
        write_witness(connection, command)
        if command.name == "slow":
            connection.execute("SET LOCAL statement_timeout = '20 ms'")
            connection.execute("SELECT pg_sleep(60)")

    append(database, "a", "insert", "slow")
    append(database, "b", "insert")
    outcome = apply_all(database, handlers)
    assert (outcome.commands, outcome.failures, outcome.held) == (2, 1, 1)
    assert applied(database, "a") == [1]
    error = database.value("SELECT last_error FROM inturn.key_cursor WHERE key = 'a'")
    assert "canceling statement due to statement timeout" in error


def test_a_handler_that_swallows_a_database_error_has_failed(database: Database) -> None:
    open_shop(database, settings="max_attempts => 1")
    handlers = Applier()

    @handlers.handler(TOPIC)
    def swallow(connection: Connection, command: Command) -> None:
        write_witness(connection, command)
        if command.name == "swallow":
            with suppress(psycopg.Error):
                connection.execute("SELECT 1 / 0")

    append(database, "a", "insert", "swallow", "insert")
    append(database, "b", "insert")
    outcome = apply_all(database, handlers)
    assert (outcome.commands, outcome.failures, outcome.held) == (2, 1, 1)
    assert applied(database, "a") == [1]
    error = database.value("SELECT last_error FROM inturn.key_cursor WHERE key = 'a'")
    assert "the handler returned although a statement of its had failed" in error


def test_a_handler_may_catch_a_database_error_inside_a_savepoint(database: Database) -> None:
    open_shop(database)
    handlers = Applier()

    @handlers.handler(TOPIC)
    def careful(connection: Connection, command: Command) -> None:
        with pytest.raises(psycopg.errors.DivisionByZero), connection.transaction():
            connection.execute("SELECT 1 / 0")
        write_witness(connection, command)

    append(database, "a", "insert", "insert")
    assert apply_all(database, handlers).commands == 2
    assert_once_and_in_turn(database)


@pytest.mark.parametrize(
    "statement",
    [
        "COMMIT",
        "ROLLBACK",
        "COMMIT; BEGIN",
    ],
)
@pytest.mark.parametrize("neighbours", [0, 20])
def test_a_handler_that_ends_the_transaction_fails_and_the_worker_lives(
    database: Database, statement: str, neighbours: int
) -> None:
    open_shop(database, settings="max_attempts => 1")
    handlers = Applier()

    @handlers.handler(TOPIC)
    def end(connection: Connection, command: Command) -> None:
        write_witness(connection, command)
        if command.name == "end":
            connection.execute(statement)

    append_keys(database, neighbours)
    append(database, "a", "insert", "end", "insert")
    append(database, "b", "insert")
    outcome = apply_all(database, handlers)
    assert outcome.error is None
    assert database.execute("SELECT key FROM inturn.key_cursor WHERE held_at IS NOT NULL") == [("a",)]
    assert applied(database, "b") == [1]
    error = database.value("SELECT last_error FROM inturn.key_cursor WHERE key = 'a'")
    assert "ended the transaction" in error
    # Nobody is claimed for good, and nobody else's command is lost.
    assert database.value("SELECT count(*) FROM inturn.key_cursor WHERE ready_at IS NOT NULL") == 0
    assert (
        database.value("SELECT count(DISTINCT key) FROM app.witness WHERE key LIKE 'k%%'", []) == neighbours
    )


def test_commit_on_the_connection_is_refused_to_a_handler(database: Database) -> None:
    open_shop(database, settings="max_attempts => 1")
    handlers = Applier()

    @handlers.handler(TOPIC)
    def commit(connection: Connection, command: Command) -> None:
        write_witness(connection, command)
        connection.commit()

    append(database, "a", "insert")
    assert apply_all(database, handlers).held == 1
    assert count_applied(database) == 0
    assert "Explicit commit() forbidden" in database.value("SELECT last_error FROM inturn.key_cursor")


def test_a_handler_that_closes_the_connection_ends_no_worker(database: Database) -> None:
    open_shop(database)
    handlers = Applier()
    closed = threading.Event()

    @handlers.handler(TOPIC)
    def close_once(connection: Connection, command: Command) -> None:
        if not closed.is_set():
            closed.set()
            connection.close()
        write_witness(connection, command)

    append(database, "a", "insert")
    with at_work(database, handlers):
        until(lambda: applied(database, "a") == [1], "the effect, on a new connection")
    assert_once_and_in_turn(database)


@pytest.mark.parametrize("target", ["sql", "python"])
def test_a_deadlock_between_handlers_of_two_appliers_ends_with_both_applied_once(
    database: Database, target: str
) -> None:
    """Two keys, whose handlers lock the same two rows crosswise, and meet in between."""
    open_shop(database)
    database.execute("""
        CREATE TABLE app.stock (item text PRIMARY KEY, n integer NOT NULL DEFAULT 0);
        INSERT INTO app.stock VALUES ('x'), ('y');
        CREATE FUNCTION app.cross(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            UPDATE app.stock SET n = n + 1 WHERE item = command.payload ->> 'first';
            -- The other one waits here too, or for our row, or is done.
            FOR i IN 1 .. 500 LOOP
                EXIT WHEN (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                            AND pid <> pg_backend_pid() AND wait_event IN ('PgSleep', 'transactionid')) > 0;
                PERFORM pg_sleep(0.01);
                EXIT WHEN EXISTS (SELECT FROM app.witness);
                PERFORM pg_stat_clear_snapshot();
            END LOOP;
            UPDATE app.stock SET n = n + 1 WHERE item = command.payload ->> 'second';
            INSERT INTO app.witness (key, seq, name) VALUES (command.key, command.seq, command.name);
        END $$;
        SELECT inturn.create_topic('cross', 'sql:app.cross', backoff_base => '10 ms');
        SELECT inturn.create_topic('python-cross', backoff_base => '10 ms');
    """)
    handlers = Applier()

    @handlers.handler("python-cross")
    def cross(connection: Connection, command: Command) -> None:
        connection.execute(
            "SELECT app.cross(ROW(%s, %s, %s, %s, %s::jsonb, now(), 1)::inturn.command)",
            (
                command.topic,
                command.key,
                command.seq,
                command.name,
                Jsonb(command.payload),
            ),
        )

    topic = "cross" if target == "sql" else "python-cross"
    for key, first, second in (("a", "x", "y"), ("b", "y", "x")):
        database.execute(
            "SELECT inturn.append(%s, %s, 'move', jsonb_build_object('first', %s::text, 'second', %s::text))",
            [topic, key, first, second],
        )
    before = database.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    with at_work(database, handlers, topics=[topic], workers=2, max_keys=1):
        until(lambda: count_applied(database) == 2, "both", 60)
    assert database.execute("SELECT item, n FROM app.stock ORDER BY item") == [("x", 2), ("y", 2)]
    assert_once_and_in_turn(database)
    until(
        lambda: (
            database.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
            > before
        ),
        "the deadlock: without one this test proves nothing",
    )
