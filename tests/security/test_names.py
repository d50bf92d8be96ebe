"""Names in inturn's own SQL mean what the schema says, whoever may create in which schema."""

from __future__ import annotations

import json
import re
from typing import Any

import psycopg
import pytest
from support.database import Database
from support.planted import names_in_bodies, plant, times_called
from support.process import run_inturn
from support.roles import LOGIN_OF, OWNER

from inturn.applier import Applier, Command, Fleet
from inturn.cli.act.actions import ACTIONS

PINNED = "search_path=pg_catalog, pg_temp"
#: On the way to a user's target, or to the constraints on what it did, which the session's search_path has
#: to reach.
TO_TARGETS = {
    *("apply", "_visit_topic", "_visit_alone", "apply_batch", "_apply_key", "_apply_alone"),
    *("_check_effects", "finish", "_end_alone", "_keep_settings", "_reset_session"),
    # It commits, as apply does.
    "prune",
}
#: What the planner puts in the place of its call, which a setting would keep it from.
INLINED = {
    # Not inlined, but a part of appends, of which a pin would be a per cent.
    "_wake_key",
    *("_state_at", "_next_ready_at", "_empty_turn_wait", "_process_of", "_max_claim_octets"),
    *("_appeared", "_planned_arrivals", "_held_keys", "_find_cursor", "_first_line", "_target_kinds"),
    *("_kind_of", "_function_name", "_seconds_per_key"),
}
_UNREAD = re.compile(
    r"--[^\n]*|'(?:[^']|'')*'"  # comments and texts
    r"|OPERATOR\(pg_catalog\.[^)]*\)|:=|=>|::|\.\.|\.\*|\(\*\)|SELECT \*|UNLISTEN \*"
    r"|\b(?:ERRCODE|MESSAGE|DETAIL|HINT) =|\w+ = (?:MESSAGE_TEXT|PG_EXCEPTION_\w+|RETURNED_SQLSTATE)\b"
    r"|CREATE FUNCTION.*?AS \$\$"
)
_UNQUALIFIED = re.compile(
    r"(?P<operator>[+\-*/<>=~!@#%^&|`?]+)"
    r"|\b(?P<word>I?LIKE|IN \(|BETWEEN|NULLIF|DISTINCT FROM|USING \(|SIMILAR|CASE \w+(?:\.\w+)? WHEN)"
    r"|(?<![.\w])(?P<called>[a-z_][a-z0-9_]+)\("
    r"|(?<![.\w])(?P<type>text|timestamptz|record|jsonb|xid8)\b(?!\()",
    re.IGNORECASE,
)
#: Words of the grammar that look like calls.
_GRAMMAR = {
    *("coalesce", "greatest", "least", "row", "array", "exists", "extract", "values", "and", "or", "not"),
    *("from", "when", "then", "in", "lateral", "on", "any", "all"),
}


def unqualified(body: str) -> list[str]:
    """Return what a body leaves to the search_path."""
    rest = _UNREAD.sub(" ", body)
    return [
        each.group() for each in _UNQUALIFIED.finditer(rest) if (each["called"] or "").lower() not in _GRAMMAR
    ]


def test_every_function_pins_its_search_path_or_is_on_the_short_list(database: Database) -> None:
    unpinned = database.execute(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'inturn'::regnamespace"
        " AND NOT coalesce(proconfig @> ARRAY[%s], false) ORDER BY 1",
        [PINNED],
    )
    assert {name for (name,) in unpinned} == TO_TARGETS | INLINED


def test_what_is_on_the_short_list_is_wholly_qualified(database: Database) -> None:
    bodies = database.execute(
        "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'inturn'::regnamespace"
        " AND NOT coalesce(proconfig @> ARRAY[%s], false)",
        [PINNED],
    )
    assert {name: found for name, body in bodies if (found := unqualified(body))} == {}


@pytest.mark.parametrize("result", ["one", "void", "bigint"])
@pytest.mark.parametrize(
    ("source", "merges"),
    [("_batch_commands", False), ("_turn_commands", False), ("_turn_commands", True)],
)
def test_the_query_that_calls_a_target_is_wholly_qualified(
    witness: Database, source: str, result: str, *, merges: bool
) -> None:
    if result != "one":
        body = "SELECT" if result == "void" else "SELECT 1"
        witness.execute(
            f"CREATE FUNCTION app.batch(inturn.command[]) RETURNS {result} LANGUAGE sql AS '{body}'"
        )
    target = "app.apply_order" if result == "one" else "app.batch"
    witness.execute(
        "UPDATE inturn.topic SET (target, merges) = ROW (%s, %s)", [f"sql:{target}", merges]
    )  # of the same owner
    query = witness.value("SELECT inturn._target_query(t, %s) FROM inturn.topic t", [source])
    assert f"{target}(" in query
    assert unqualified(query) == []


def test_the_scan_finds_what_is_not_qualified() -> None:
    body = (
        "SELECT a + 1, now(), lower(x) LIKE 'a', nullif(b, 'c') FROM t WHERE x IN ('y') OR z::text = 'w' -- f"
    )
    assert unqualified(body) == ["+", "now(", "lower(", "LIKE", "nullif", "IN (", "text", "="]


# Some forty processes, one after the other.
@pytest.mark.timeout(600)
def test_what_is_planted_in_public_is_never_called(witness: Database) -> None:
    witness.execute("""
        ALTER FUNCTION app.apply_order SET search_path = pg_catalog;
        SELECT inturn.set_topic('orders', max_attempts => 1);
        SELECT inturn.create_topic('inside'), inturn.create_topic('outside'),
               inturn.create_topic('numbered', 'sql:app.apply_order', numbering => 'given'),
               inturn.create_topic('posts', 'sql:app.apply_order', numbering => 'arrival');
        CREATE FUNCTION app.apply_batch(inturn.command[]) RETURNS bigint LANGUAGE sql
            SET search_path = pg_catalog AS 'SELECT cardinality($1)::bigint';
        SELECT inturn.create_topic('batches', 'sql:app.apply_batch');
        CREATE FUNCTION app.combine(inturn.command, inturn.command) RETURNS jsonb LANGUAGE sql
            SET search_path = pg_catalog AS 'SELECT $1.payload || $2.payload';
    """)
    called, operators = names_in_bodies(witness)
    assert {"cardinality", "format", "unnest", "octet_length"} <= called
    plant(witness, called, operators)
    dsn = witness.as_superuser()
    for command in COMMANDS:
        code, out, err = run_inturn(dsn, *command)
        assert code in {0, 1, 3, 9}, (command, code, out, err)
        assert "PLANTED" not in out + err, (command, err)
    use_handlers(dsn)
    for statement in STATEMENTS:
        with psycopg.connect(dsn, autocommit=True) as session:
            session.execute("CREATE TEMP TABLE pg_locks (nothing integer)")
            session.execute("CREATE TEMP TABLE pg_proc (nothing integer)")
            session.execute("CREATE TYPE pg_temp.text AS (nothing integer)")
            session.execute(statement)
    assert times_called(witness) == 0
    assert applied(witness) >= {("orders", "a"), ("numbered", "n"), ("posts", "p"), ("batches", "t")}


def test_a_planted_one_would_be_called(database: Database) -> None:
    plant(database, {"cardinality", "format"}, {"="})
    with psycopg.connect(database.dsn) as session:
        for what in ("cardinality('{a}'::text[])", "1 = 1", "format('a', 'b'::text)"):
            with pytest.raises(psycopg.errors.RaiseException, match="PLANTED"):
                session.execute(f"SELECT {what}")
            session.rollback()
    assert times_called(database) == 3


def test_every_command_is_run_beside_what_is_planted() -> None:
    run = {command for line in COMMANDS for command in (line[0], " ".join(line[:2]))}
    without_the_database = {"embedded start", "embedded status", "embedded stop", "completion"}
    in_a_database_of_its_own = {"demo"}
    assert set(LOGIN_OF) - run == without_the_database | in_a_database_of_its_own


#: The actions with a line of their own below, as they take more than a key and a reason.
WITH_MORE = {"amend", "cancel-rest", "fill-gap", "pause", "replay", "resume", "retry", "skip"}
COMMANDS: list[tuple[str, ...]] = [
    ("topic", "merge", "batches", "insert", "insert", "last"),
    ("topic", "merge", "batches", "insert", "change", "sql:app.combine"),
    ("append", "orders", "a", "insert", "{}"),
    ("append", "orders", "b", "fail", "{}"),
    ("append", "orders", "c", "insert", "{}", "--idempotency-key", "once"),
    ("append", "numbered", "n", "insert", "{}", "--seq", "1"),
    ("append", "numbered", "n", "insert", "{}", "--seq", "3"),
    ("append", "posts", "p", "insert", "{}"),
    ("append", "batches", "t", "insert", "{}"),
    ("append", "batches", "t", "insert", "{}"),
    ("append", "batches", "t", "change", "{}"),
    ("topic", "merge", "batches", "insert", "delete", "nothing", "--dry-run"),
    (
        "apply",
        "--drain",
        "--topic",
        "orders",
        "--topic",
        "numbered",
        "--topic",
        "posts",
        "--topic",
        "batches",
    ),
    ("status",),
    ("metrics",),
    ("doctor",),
    ("keys",),
    ("keys", "--errors"),
    ("keys", "--sort", "lag"),
    ("why", "b"),
    ("why", "n"),
    ("why", "nobody"),
    ("show", "b"),
    ("amend", "b", "1", "--payload", "{}", "--reason", "r"),
    ("retry", "b", "--reason", "r"),
    ("apply", "--drain", "--topic", "orders"),
    ("skip", "b", "--seq", "1", "--reason", "r"),
    ("replay", "a", "1", "--reason", "r"),
    ("pause", "a", "--reason", "r", "--until", "2h"),
    ("resume", "a", "--reason", "r"),
    ("cancel-rest", "a", "--reason", "r"),
    ("fill-gap", "n", "--seq", "2", "--reason", "r"),
    *((action.name, "a", "--reason", "r") for action in ACTIONS if action.name not in WITH_MORE),
    ("wait", "a", "1", "--topic", "orders"),
    ("topic", "create", "more"),
    ("topic", "grant", "more", "--caller", "inturn_caller", "--reason", "r"),
    ("topic", "revoke", "more", "--caller", "inturn_caller", "--reason", "r"),
    ("topic", "set", "more", "--max-attempts", "3", "--reason", "r"),
    ("pause", "--topic", "more", "--reason", "r"),
    ("resume", "--topic", "more", "--reason", "r"),
    ("topic", "merge", "batches"),
    ("topic", "merge", "batches", "insert", "insert", "--remove"),
    ("topic", "list"),
    ("topic", "show", "orders"),
    ("prune", "--topic", "orders", "--older-than", "1ms"),
    ("verify",),
    ("upgrade",),
    ("downgrade",),  # refused, as functions take commands
]

#: Beside what the commands run: what a client of another language calls, and a session of the database.
STATEMENTS = [
    "SELECT inturn.append_many('orders', '{a,b,a}', '{insert,insert,insert}')",
    "CALL inturn.apply(max_seconds => 30)",
    "SELECT inturn.append('orders', 'a', 'insert'), inturn.append('orders', 'd', 'fail')",
    "SELECT inturn.claim('{orders}'::pg_catalog.text[], 1, NULL, 'me')",
    "SELECT inturn.announce_sleep('{orders}'), inturn.next_ready('{orders}', '-infinity')",
    "SELECT inturn.pending_commands('{orders}'), inturn.topic_status(), inturn.list_appliers()",
    "SELECT inturn.apply_batch('orders', '-infinity', 10, 'me')",
    "SELECT inturn.verify('orders'), inturn.verify_topics(), inturn.timeline('orders', 'a')",
]


def use_handlers(dsn: str) -> None:
    """Apply with handlers of both kinds, whose own names mean what the session says."""
    applier = Applier()
    paths = []

    @applier.handler("inside")
    def inside(connection: psycopg.Connection[Any], command: Command) -> None:
        paths.append(connection.execute("SHOW search_path").fetchone())
        if command.name == "fail":
            raise ValueError

    @applier.handler("outside", outside=True)
    def outside(command: Command) -> None:
        if command.name == "fail":
            raise ValueError

    for topic in ("inside", "outside"):
        for name in ("insert", "fail"):
            assert run_inturn(dsn, "append", topic, f"{topic}-{name}", name, json.dumps({}))[0] == 0
    fleet = Fleet(dsn, applier, drain=True, topics=["inside", "outside"])
    fleet.start()
    assert fleet.wait(60)
    assert fleet.end(1).error is None
    assert set(paths) == {("public, pg_catalog",)}


def applied(database: Database) -> set[tuple[str, str]]:
    with database.connect(options="-c search_path=pg_catalog", user=OWNER) as session:
        return {
            (str(topic), str(key))
            for topic, key in session.execute(
                "SELECT topic, key FROM inturn.turn WHERE outcome = 'applied'"
            ).fetchall()
        }
