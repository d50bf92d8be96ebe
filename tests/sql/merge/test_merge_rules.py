"""Merge rules: which are refused, how they are recorded, removed and looked at."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest
from support.database import Database
from support.logins import connect_as
from support.merging import append, calls, merges, open_orders, state
from support.roles import OWNER

from inturn.schema.errors import (
    BY_SQLSTATE,
    MergeFunctionRefused,
    MergeRuleExists,
    MergeRuleRefused,
    UnknownMergeRule,
)


def _refused(database: Database, query: str, arguments: Sequence[str | None]) -> tuple[str | None, str]:
    with pytest.raises(psycopg.Error) as refused:
        database.execute(query, arguments)
    return refused.value.sqlstate, str(refused.value)


def _refused_rule(database: Database, *rule: str | None) -> tuple[str | None, str]:
    found = _refused(database, "SELECT inturn.merge_rule('orders', %s, %s, %s)", rule)
    assert database.value("SELECT count(*) FROM inturn.merge_rule") == 0
    assert database.value("SELECT count(*) FROM inturn.operator_action WHERE action <> 'create'") == 0
    assert not database.value("SELECT merges FROM inturn.topic")
    return found


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ((None, "delete", "nothing"), "would stand for every command"),
        (("insert", None, "nothing"), "would stand for every command"),
        (("", "delete", "nothing"), "0 octets"),
        (("insert", "x" * 129, "nothing"), "129 octets"),
        (("*", "delete", "nothing"), "swallow commands that nobody named"),
        (("insert", "del%", "last"), "swallow commands that nobody named"),
        (("insert", "delete", "first"), "nothing, last and sql:SCHEMA.FUNCTION are allowed"),
        (("insert", "delete", None), "becomes is NULL"),
        (("insert", "delete", "sql:"), "nothing, last and sql:SCHEMA.FUNCTION are allowed"),
    ],
)
def test_a_rule_that_names_nothing_or_everything_is_refused(
    database: Database, rule: tuple[str | None, ...], says: str
) -> None:
    open_orders(database, rules=())
    sqlstate, text = _refused_rule(database, *rule)
    assert sqlstate == MergeRuleRefused.sqlstate == "IT060"
    assert says in text


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("", "there is no function app.f"),
        ("FUNCTION app.f(a inturn.command, b inturn.command) RETURNS text LANGUAGE sql AS $$ SELECT '' $$",
         "returns text"),
        ("FUNCTION app.f(inturn.command, inturn.command) RETURNS SETOF jsonb LANGUAGE plpgsql AS 'BEGIN END'",
         "returns a set"),
        ("PROCEDURE app.f(a inturn.command, b inturn.command) LANGUAGE sql AS $$ $$", "there is no function"),
        ("FUNCTION app.f(a inturn.command) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{}'::jsonb $$",
         "there is no function app.f"),
    ],
)  # fmt: skip
def test_a_function_that_cannot_merge_two_commands_is_refused(
    database: Database, function: str, says: str
) -> None:
    open_orders(database, rules=())
    if function:
        database.execute(f"CREATE {function}")
    sqlstate, text = _refused_rule(database, "insert", "update", "sql:app.f")
    assert sqlstate == MergeFunctionRefused.sqlstate == "IT061"
    assert says in text or "is a procedure" in text


def test_a_function_of_a_session_of_its_own_is_refused(database: Database) -> None:
    open_orders(database, rules=())
    with database.connect(user=OWNER) as connection:
        connection.execute(
            "CREATE FUNCTION pg_temp.f(a inturn.command, b inturn.command) RETURNS jsonb"
            " LANGUAGE sql AS $$ SELECT a.payload $$"
        )
        with pytest.raises(psycopg.Error, match="own schema") as refused:
            connection.execute("SELECT inturn.merge_rule('orders', 'insert', 'update', 'sql:pg_temp.f')")
    assert refused.value.sqlstate == MergeFunctionRefused.sqlstate


def test_a_pair_has_one_rule_and_the_same_again_changes_nothing(database: Database) -> None:
    open_orders(database, rules=())
    rule = "SELECT inturn.merge_rule('orders', 'insert', 'delete', %s)"
    assert database.value(rule, ["nothing"]) is True
    assert database.value(rule, ["nothing"]) is False
    sqlstate, text = _refused(database, rule, ["last"])
    assert sqlstate == MergeRuleExists.sqlstate == "IT062"
    assert "they become nothing" in text
    assert database.execute("SELECT action, after FROM inturn.operator_action WHERE action <> 'create'") == [
        ("merge-rule", {"first": "insert", "then": "delete", "becomes": "nothing"})
    ]


def test_a_removed_rule_merges_no_more_and_is_gone_once(database: Database) -> None:
    open_orders(database)
    remove = "SELECT (inturn.remove_merge_rule('orders', %s, %s, 'no use')).action"
    assert database.value(remove, ["insert", "delete"]) == "remove-merge-rule"
    sqlstate, text = _refused(database, remove, ["insert", "delete"])
    assert sqlstate == UnknownMergeRule.sqlstate == "IT063"
    assert "no merge rule for 'insert' and then 'delete'" in text
    append(database, "a", "insert", "delete")
    database.execute("CALL inturn.apply()")
    assert calls(database, "a") == [(1, "insert"), (2, "delete")]


def test_create_topic_says_that_it_is_there_whatever_its_rules(database: Database) -> None:
    open_orders(database)
    create = (
        "SELECT inturn.create_topic('orders', 'sql:app.apply', backoff_base => '1 ms', backoff_cap => '1 ms')"
    )
    assert database.value(create) is False


def test_every_error_has_its_class() -> None:
    kinds = (MergeRuleRefused, MergeFunctionRefused, MergeRuleExists, UnknownMergeRule)
    assert [BY_SQLSTATE[f"IT06{n}"] for n in range(4)] == list(kinds)


def test_the_preview_says_what_applying_then_does_and_changes_nothing(database: Database) -> None:
    open_orders(database, rules=RULE, settings="batch_commands => 3")
    database.execute("CREATE TABLE app.called (x int)")
    append(database, "a", "insert", "update", "update", "delete", "insert", "update")
    append(database, "b", "insert", "delete")
    append(database, "c", "note", "note")
    preview = "SELECT * FROM inturn.merge_preview('orders', 'insert', 'delete', 'nothing')"
    found = database.execute(preview)
    assert found == [
        ("insert + delete -> nothing", 1, 2, None, None),
        ("update + update -> last", 1, 2, None, None),
        (None, 2, 4, 10, 7),
    ]
    assert database.value("SELECT count(*) FROM inturn.merge_plan") == 0
    assert database.value("SELECT count(*) FROM inturn.merge_rule") == 1
    database.execute("SELECT inturn.merge_rule('orders', 'insert', 'delete', 'nothing')")
    database.execute("CALL inturn.apply()")
    assert database.value("SELECT count(*) FROM app.call") == 7


RULE = (("update", "update", "last"),)


def test_a_merge_function_runs_with_the_rights_of_who_applies(database: Database) -> None:
    open_orders(database, rules=())
    database.execute("""
        CREATE TABLE app.secret (x int);
        CREATE FUNCTION app.peek(a inturn.command, b inturn.command) RETURNS jsonb
            LANGUAGE sql AS $$ SELECT jsonb_build_object('n', (SELECT count(*) FROM app.secret)) $$;
        CREATE FUNCTION app.who(a inturn.command, b inturn.command) RETURNS jsonb
            LANGUAGE sql AS $$ SELECT jsonb_build_object('who', current_user) $$;
        SELECT inturn.merge_rule('orders', 'insert', 'update', 'sql:app.who');
        SELECT inturn.merge_rule('orders', 'update', 'update', 'sql:app.peek');
        GRANT USAGE ON SCHEMA app TO inturn_applier;
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA app TO inturn_applier;
        GRANT ALL ON app.state, app.call TO inturn_applier;
        GRANT USAGE ON SEQUENCE app.call_id_seq TO inturn_applier;
    """)
    append(database, "a", "insert", "update")
    append(database, "b", "update", "update")
    connection = connect_as(database, "inturn_applier")
    connection.execute("CALL inturn.apply()")
    assert state(database)["a"] == {"who": connection.info.user}
    error = database.value("SELECT error FROM inturn.turn WHERE key = 'b' AND error IS NOT NULL")
    assert "permission denied for table secret" in error


def test_a_merge_function_may_look_and_not_write(database: Database) -> None:
    open_orders(database, rules=())
    database.execute("""
        CREATE TABLE app.written (key text);
        CREATE FUNCTION app.write(a inturn.command, b inturn.command) RETURNS jsonb LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO app.written VALUES (a.key); RETURN a.payload; END $$;
        SELECT inturn.merge_rule('orders', 'insert', 'update', 'sql:app.write');
    """)
    append(database, "a", "insert", "update")
    database.execute("CALL inturn.apply()")
    assert "read-only transaction" in database.value("SELECT error FROM inturn.turn WHERE error IS NOT NULL")
    assert database.value("SELECT count(*) FROM app.written") == 0
    assert merges(database, "a") == []
