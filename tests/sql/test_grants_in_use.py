"""Processes that hold one role each do their work, and are not tricked."""

from __future__ import annotations

import re
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from support.database import Database
from support.logins import connect_as, let_apply, login
from support.place import ROOT
from support.refusal import refusal

from inturn.applier import Applier, Command, Fleet
from inturn.outbox import append


@pytest.fixture
def orders(witness: Database) -> Database:
    """The witness database, whose target the applier may run, with one command."""
    let_apply(witness)
    return witness


# Tricks.


def test_what_a_caller_puts_in_its_own_schemas_captures_nothing(orders: Database) -> None:
    with connect_as(orders, "inturn_caller") as caller:
        orders.administer(f"CREATE SCHEMA trap AUTHORIZATION {caller.info.user}")
        caller.execute("CREATE TEMP TABLE captured (what text)")
        for schema in ("pg_temp", "trap"):
            caller.execute(trap_in(schema))
        for path in ("DEFAULT", "pg_temp, pg_catalog", "trap, pg_temp, inturn, pg_catalog"):
            caller.execute(sql.SQL("SET search_path = {}").format(sql.SQL(path)))
            caller.execute("SELECT inturn.append('orders', 'a', 'insert')")
            caller.execute("SELECT inturn.append('orders', 'n', 'insert', '{}', NULL)")
            caller.execute("SELECT inturn.append('orders', 'i', 'insert', '{}', 'once')")
            caller.execute("SELECT inturn.append_many('orders', '{a,b}', '{x,y}')")
            caller.execute("INSERT INTO inturn.outbox (topic, key, name) VALUES ('orders','c','x')")
            refused = refusal(caller, "SELECT inturn.append('orders', repeat('x', 513), 'insert')")
            assert refused.sqlstate == "IT002"
        for table in ("captured", "pg_temp.command_log", "trap.command_log", "trap.ticket", "trap.turn"):
            query = sql.SQL("SELECT count(*) OPERATOR(pg_catalog.+) 0 FROM {}")
            assert caller.execute(query.format(sql.SQL(table))).fetchone() == (0,)
    counts = "SELECT key, count(*) FROM inturn.command_log GROUP BY key ORDER BY key"
    assert orders.execute(counts) == [("a", 7), ("b", 3), ("c", 3), ("i", 1), ("n", 3)]


def trap_in(schema: LiteralString) -> sql.Composed:
    """Return what would capture unqualified names: tables, functions, operators, types."""
    return sql.SQL("""
        CREATE TABLE {0}.topic (name text, max_payload_bytes integer);
        CREATE TABLE {0}.key_sequence (topic text, key text, given boolean);
        CREATE TABLE {0}.command_log (topic text, key text, seq bigint, name text,
            payload jsonb, idempotency_key text);
        CREATE TABLE {0}.turn (topic text, key text, epoch bigint, applied_seq bigint, drained boolean);
        CREATE TABLE {0}.ticket (topic text, key text, epoch bigint, applied_seq bigint,
            ready_at timestamptz);
        CREATE TABLE {0}.wake_hint (topic text, key text, left_at timestamptz);
        CREATE TABLE {0}.listener (topic text, asleep_until timestamptz);
        CREATE FUNCTION {0}.append(text, text, text, jsonb, text) RETURNS bigint
            LANGUAGE sql AS 'INSERT INTO captured VALUES (''append''); SELECT 99::bigint';
        CREATE FUNCTION {0}.octet_length(text) RETURNS integer
            LANGUAGE sql AS 'INSERT INTO captured VALUES (''length''); SELECT 1';
        CREATE FUNCTION {0}.clock_timestamp() RETURNS timestamptz
            LANGUAGE sql AS 'INSERT INTO captured VALUES (''clock''); SELECT now()';
        CREATE FUNCTION {0}.pg_notify(text, text) RETURNS void
            LANGUAGE sql AS 'INSERT INTO captured VALUES (''notify'')';
        CREATE FUNCTION {0}.same(text, text) RETURNS boolean
            LANGUAGE sql AS 'INSERT INTO captured VALUES (''same''); SELECT true';
        CREATE OPERATOR {0}.= (FUNCTION = {0}.same, LEFTARG = text, RIGHTARG = text);
        CREATE FUNCTION {0}.over(integer, integer) RETURNS boolean
            LANGUAGE sql AS 'INSERT INTO captured VALUES (''over''); SELECT false';
        CREATE OPERATOR {0}.> (FUNCTION = {0}.over, LEFTARG = integer, RIGHTARG = integer);
        CREATE DOMAIN {0}.int8 AS integer CHECK (value < 0);
        CREATE DOMAIN {0}.jsonb AS pg_catalog.jsonb CHECK (value = '"never"');
        CREATE TYPE {0}.record AS (nothing integer);
    """).format(sql.SQL(schema))


# No more than is used.


def test_no_role_may_call_a_part_that_nothing_calls_as_that_role(database: Database) -> None:
    """By what Python sends, a view or a policy, or by a function that runs as who calls it."""
    bodies = database.execute("""
        SELECT proname, string_agg(regexp_replace(prosrc, '--[^\\n]*', '', 'g'), ' ') FILTER (
            WHERE NOT prosecdef)
        FROM pg_proc WHERE pronamespace = 'inturn'::regnamespace GROUP BY 1
    """)
    calls = {name: set(re.findall(r"\b_\w+", body or "")) for name, body in bodies}
    read: str = database.value("""
        SELECT concat((SELECT string_agg(pg_get_viewdef(oid), ' ') FROM pg_class
                       WHERE relnamespace = 'inturn'::regnamespace AND relkind = 'v'),
                      (SELECT string_agg(pg_get_expr(polqual, polrelid), ' ') FROM pg_policy))
    """)
    folders = [ROOT / name for name in ("applier", "cli", "outbox", "schema")]
    sent = [path.read_text("utf-8") for folder in folders for path in folder.rglob("*.py")]
    begun = set(re.findall(r"(?:\}|inturn)\.(_\w+)", "".join([read, *sent])))
    for role in ("inturn_caller", "inturn_applier", "inturn_operator", "inturn_admin"):
        rows = database.execute(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'inturn'::regnamespace"
            " AND has_function_privilege(%s, oid, 'EXECUTE')",
            [role],
        )
        granted = {name for (name,) in rows}
        called = {name for name in granted if not name.startswith("_")} | (granted & begun)
        while more := {part for name in called for part in calls[name] & granted} - called:
            called |= more
        assert granted - called == set(), role


# A service whose processes hold one role each.


def test_the_whole_run_without_a_superuser_by_sql(orders: Database) -> None:
    # What fails is not tried again by the same CALL.
    orders.execute("SELECT inturn.set_topic('orders', backoff_cap => '1 hour', backoff_base => '1 hour')")
    with (
        connect_as(orders, "inturn_caller") as caller,
        connect_as(orders, "inturn_applier") as applier,
        connect_as(orders, "inturn_operator") as operator,
    ):
        assert caller.execute("SELECT inturn.append('orders', 'a', 'delete')").fetchone() == (2,)
        caller.execute("SELECT inturn.append('orders', 'b', 'fail')")
        assert applier.execute("CALL inturn.apply(max_seconds => 30)").fetchone() == (2, 1)
        listed = operator.execute("SELECT key, state, applied_seq FROM inturn.list_keys()")
        assert listed.fetchall() == [("b", "retrying", 0), ("a", "idle", 2)]
        turns = operator.execute("SELECT outcome, error FROM inturn.turn WHERE key = 'b'")
        outcome, error = turns.fetchone() or (None, "")
        assert (outcome, error.splitlines()[0]) == ("retrying", "refused b (SQLSTATE P0001)")
    assert orders.execute("SELECT key, seq FROM app.witness ORDER BY id") == [("a", 1), ("a", 2)]


def test_the_whole_run_without_a_superuser_in_python(orders: Database) -> None:
    orders.execute("SELECT inturn.create_topic('mails')")
    with connect_as(orders, "inturn_caller") as caller:
        append(caller, "mails", "m", "send")
        append(caller, "orders", "a", "delete")
    applier = Applier()

    @applier.handler("mails")
    def send(connection: psycopg.Connection[Any], command: Command) -> None:
        connection.execute(
            "INSERT INTO app.witness (key, seq, name) VALUES (%s, %s, %s)",
            (command.key, command.seq, connection.info.user),
        )

    fleet = Fleet(login(orders, "inturn_applier"), applier, drain=True)
    fleet.start()
    assert fleet.wait(60)
    outcome = fleet.end(1)
    assert outcome.error is None
    assert (outcome.commands, outcome.failures, outcome.held) == (3, 0, 0)
    assert orders.execute("SELECT key, seq, name FROM app.witness ORDER BY key, seq") == [
        ("a", 1, "insert"),
        ("a", 2, "delete"),
        ("m", 1, f"{orders.name}_applier"),
    ]


def test_an_applier_without_a_right_that_its_target_needs_fails_the_command_and_says_so(
    witness: Database,
) -> None:
    witness.execute("GRANT USAGE ON SCHEMA app TO inturn_applier")
    witness.execute("SELECT inturn.append('orders', 'a', 'insert')")
    with connect_as(witness, "inturn_applier") as applier:
        applier.execute("CALL inturn.apply(max_seconds => 30)")
    assert witness.value("SELECT count(*) FROM app.witness") == 0
    assert "permission denied" in witness.value("SELECT last_error FROM inturn.key_cursor")
