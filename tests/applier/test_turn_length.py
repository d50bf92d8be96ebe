"""A turn does not keep its key for long: who pauses a deep, slow key waits for the command in hand."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from support.database import Database, until
from support.oracle import Oracle
from support.race import replace_in
from support.roles import APPLIER, OWNER

from inturn.applier import Applier, Batch, Command, Fleet
from inturn.applier.inside.batch import OLDEST, Target
from inturn.applier.inside.python_target import PythonTarget
from inturn.applier.inside.sql_target import SqlTarget
from inturn.applier.stop import Stop

Connection = psycopg.Connection[Any]
TOPIC = "orders"


def handlers() -> Applier:
    """What app.apply_order does."""
    applier = Applier()

    @applier.handler(TOPIC)
    def apply(connection: Connection, command: Command) -> None:
        connection.execute(
            "SELECT app.apply_order(ROW(%s, %s, %s, %s, '{}', now(), %s)::inturn.command)",
            (command.topic, command.key, command.seq, command.name, command.attempt),
        )

    return applier


@pytest.fixture(params=["sql", "python"])
def target(request: pytest.FixtureRequest, witness: Database) -> Target:
    witness.execute("INSERT INTO app.gate VALUES ('x'), ('y')")
    if request.param == "sql":
        return SqlTarget(TOPIC, "inturn", "test", Stop())
    witness.execute("UPDATE inturn.topic SET target = 'python'")
    return PythonTarget(TOPIC, handlers(), Stop(), "inturn", "test")


@pytest.fixture
def oracle(witness: Database) -> Oracle:
    return Oracle(witness)


def append(database: Database, key: str, *names: str) -> None:
    for name in names:
        database.execute("SELECT inturn.append('orders', %s, %s)", [key, name])


def effects(database: Database, key: str = "x") -> list[int]:
    rows = database.execute("SELECT seq FROM app.witness WHERE key = %s ORDER BY id", [key])
    return [seq for (seq,) in rows]


def fleet_of(database: Database, target: Target) -> Fleet:
    return Fleet(database.applier_dsn, handlers() if isinstance(target, PythonTarget) else None)


@contextmanager
def long_turn(database: Database, key: str = "x") -> Iterator[None]:
    """Keep the command `hang` of a key waiting until its turn has lasted over a second."""
    with database.connect(autocommit=False, user=OWNER) as gate:
        gate.execute("SELECT FROM app.gate WHERE key = %s FOR UPDATE", [key])
        yield
        until(
            lambda: database.value(
                "SELECT max(clock_timestamp() - query_start) > '1.5 s' FROM pg_stat_activity"
                " WHERE %s = ANY (pg_blocking_pids(pid))",
                [gate.info.backend_pid],
            ),
            "the turn has lasted a second",
        )


def test_a_pause_takes_effect_after_the_command_in_hand(
    witness: Database, oracle: Oracle, target: Target
) -> None:
    """The rest stays pending, appends go on, and resuming picks up in order."""
    append(witness, "x", "insert", "hang", *["insert"] * 20)
    fleet = fleet_of(witness, target)
    operator = witness.session(autocommit=True)
    with long_turn(witness):
        fleet.start()
        until(lambda: blocked_at_the_gate(witness), "the second command in hand")
        pausing = operator.begin("SELECT inturn.pause('orders', 'x', 'too slow')")
        operator.wait_blocked()
    pausing.result(60)
    assert effects(witness) == [1, 2]
    assert witness.execute("SELECT applied_seq, ready_at FROM inturn.key_cursor") == [(2, None)]
    append(witness, "x", "insert")
    append(witness, "y", "insert")
    until(lambda: effects(witness, "y"), "another key goes on")
    assert effects(witness) == [1, 2]
    oracle.check()
    operator.execute("SELECT inturn.resume('orders', 'x')")
    until(lambda: len(effects(witness)) == 23, "all the others")
    oracle.wait_no_key_ready()
    assert oracle.check_drained() == 24
    assert fleet.end(20).error is None


def blocked_at_the_gate(database: Database) -> bool:
    return bool(
        database.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'inturn apply' AND cardinality(pg_blocking_pids(pid)) > 0"
        )
    )


def one_batch(database: Database, target: Target, key: str, max_keys: int = 10) -> Batch:
    """Take turns of over a second, in which the command `hang` of a key is the slow one."""
    session = database.session(autocommit=True, user=APPLIER)
    session.connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    with ThreadPoolExecutor(1) as thread, long_turn(database, key):
        running = thread.submit(target.apply_batch, session.connection, OLDEST, max_keys)
        session.wait_blocked()
    return running.result(60)


def test_keys_of_a_long_batch_that_were_not_begun_stay_ready_as_they_were(
    witness: Database, oracle: Oracle, target: Target
) -> None:
    append(witness, "x", "insert", "hang", "insert")
    append(witness, "y", *["insert"] * 4)
    before = witness.execute("SELECT c::text FROM inturn.key_cursor c WHERE key = 'y'")
    batch = one_batch(witness, target, "x")
    # Of those that a handler was called for, and left; a SQL target does not tell.
    assert (batch.keys + batch.left, batch.commands, batch.failures) == (2, 2, 0)
    assert witness.execute("SELECT c::text FROM inturn.key_cursor c WHERE key = 'y'") == before
    assert (effects(witness), effects(witness, "y")) == ([1, 2], [])
    taken = [target.apply_batch(witness.connect(user=APPLIER), OLDEST, 10) for _ in range(2)]
    assert sum(batch.commands for batch in taken) == 5
    assert oracle.check_drained() == 7


def test_a_key_that_is_being_tried_again_keeps_its_attempts_when_it_is_not_begun(
    witness: Database, oracle: Oracle, target: Target
) -> None:
    append(witness, "y", "fail")
    target.apply_batch(witness.connect(user=APPLIER), OLDEST, 1)
    append(witness, "x", "hang")
    # Its second attempt is due, behind x, whatever the machine is busy with.
    witness.execute("UPDATE inturn.key_cursor SET ready_at = clock_timestamp() WHERE key = 'y'")
    assert one_batch(witness, target, "x").commands == 1
    attempts, error = witness.execute("SELECT attempts, last_error FROM inturn.key_cursor WHERE key = 'y'")[0]
    assert (attempts, "refused y" in error) == (1, True)
    oracle.check()


def test_what_came_before_a_failure_runs_again_however_long_it_took(
    witness: Database, oracle: Oracle, target: Target
) -> None:
    """Or the failure would never be recorded, and the key be tried for ever."""
    append(witness, "x", "insert", "insert", "hang-and-fail", "insert")
    witness.execute("""
        CREATE OR REPLACE FUNCTION app.apply_order(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO app.witness (key, seq, name) VALUES (command.key, command.seq, command.name);
            IF command.name = 'hang-and-fail' THEN
                PERFORM FROM app.gate WHERE gate.key = command.key FOR UPDATE;
                RAISE EXCEPTION 'refused %', command.key;
            END IF;
        END $$;
    """)
    batch = one_batch(witness, target, "x")
    assert (batch.commands, batch.failures) == (2, 1)
    assert effects(witness) == [1, 2]
    assert witness.execute("SELECT applied_seq, attempts FROM inturn.key_cursor") == [(2, 1)]
    oracle.check()


def test_call_apply_cuts_a_turn_too(witness: Database, oracle: Oracle) -> None:
    """And steps back before the next one, or the operator would wait for as long as there are commands."""
    witness.execute("INSERT INTO app.gate VALUES ('x')")
    append(witness, "x", "hang", *["insert"] * 20)
    applier, operator = witness.session(autocommit=True), witness.session(autocommit=True)
    with long_turn(witness):
        applying = applier.begin("CALL inturn.apply()")
        applier.wait_blocked()
        pausing = operator.begin("SELECT inturn.pause('orders', 'x')")
        operator.wait_blocked()
    pausing.result(60)
    applying.result(60)
    assert effects(witness) == [1]
    operator.execute("SELECT inturn.resume('orders', 'x')")
    assert applier.execute("CALL inturn.apply()") == [(20, 0)]
    assert oracle.check_drained() == 21


def test_a_clock_that_is_set_back_leaves_no_command_out(witness: Database, oracle: Oracle) -> None:
    """A turn that has lasted too long leaves out the end of a key's commands, never the middle."""
    replace_in(
        witness,
        "_target_query",
        (r"l\.ordinality [^\n]+ OPERATOR\(pg_catalog\.<\) \$7", "l.seq <> 2"),
    )
    append(witness, "x", "insert", "insert", "insert")
    row = witness.execute("SELECT keys, commands FROM inturn.apply_batch('orders', '-infinity', 10, 'test')")
    assert row == [(1, 1)]
    assert effects(witness) == [1]
    oracle.check()


def test_a_batch_that_is_late_from_the_beginning_begins_a_command_all_the_same(witness: Database) -> None:
    """Where everything takes long each would be, and none of them would ever apply anything."""
    replace_in(witness, "apply_batch", (r"leave_at := inturn\._begin_until\(\)", "leave_at := '-infinity'"))
    witness.execute("""
        CREATE FUNCTION app.all_orders(commands inturn.command[]) RETURNS void LANGUAGE sql AS
        $$ SELECT app.apply_order(c) FROM unnest(commands) c $$
    """)
    batch = "SELECT keys, commands FROM inturn.apply_batch('orders', '-infinity', 10, 'test')"
    for target, done in (("app.apply_order", 1), ("app.all_orders", 2)):
        witness.execute("UPDATE inturn.topic SET target = %s", [f"sql:{target}"])
        for key in ("x", "y"):
            append(witness, key, "insert", "insert")
        assert [witness.execute(batch)[0][1] for _ in range(4 // done)] == [done] * (4 // done)
        assert witness.execute(batch)[0][0] == 0
    append(witness, "x", "insert")
    witness.execute("UPDATE inturn.key_cursor SET attempts = 1 WHERE key = 'x'")
    assert witness.execute(batch) == [(1, 1)]
