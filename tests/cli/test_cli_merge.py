"""`inturn topic merge`, and what `inturn show` says of commands that were merged."""

from __future__ import annotations

import json

from support.database import Database
from support.merging import append, open_orders
from support.process import run_inturn


def _run(database: Database, *words: str, code: int = 0) -> str:
    found, out, err = run_inturn(database.dsn, *words)
    assert found == code, err
    return out if code == 0 else err


def _merge(database: Database, *words: str, code: int = 0) -> str:
    return _run(database, "topic", "merge", "orders", *words, code=code)


def test_rules_are_set_listed_and_removed(database: Database) -> None:
    open_orders(database, rules=())
    assert _merge(database, "--json") == "[]\n"
    said = _merge(database, "insert", "delete", "nothing", "--reason", "ticket 7")
    assert said == "topic orders: insert and then delete become nothing, from now on\n"
    assert _merge(database, "insert", "delete", "nothing").endswith(", as before\n")
    _merge(database, "insert", "update", "sql:app.combine")
    rows = [line.split() for line in _merge(database).splitlines()]
    assert rows[1:] == [["insert", "delete", "nothing"], ["insert", "update", "sql:app.combine"]]
    assert [rule["becomes"] for rule in json.loads(_merge(database, "--json"))] == [
        "nothing",
        "sql:app.combine",
    ]
    assert (
        database.value(
            "SELECT reason FROM inturn.operator_action WHERE action = 'merge-rule' ORDER BY id LIMIT 1"
        )
        == "ticket 7"
    )
    assert "is removed" in _merge(database, "insert", "delete", "--remove")
    assert len(json.loads(_merge(database, "--json"))) == 1


def test_what_is_set_and_removed_is_json_where_that_is_wanted(database: Database) -> None:
    open_orders(database, rules=())
    rule = {"first": "insert", "then": "delete", "becomes": "nothing"}
    for changed in (True, False):
        assert json.loads(_merge(database, *rule.values(), "--json")) == {**rule, "changed": changed}
    removed = {**rule, "becomes": None, "changed": True}
    assert json.loads(_merge(database, "insert", "delete", "--remove", "--json")) == removed


def test_half_a_rule_is_a_usage_error(database: Database) -> None:
    open_orders(database, rules=())
    for words, says in (
        (("insert",), "Give a whole rule"),
        (("insert", "delete"), "Give a whole rule"),
        (("insert", "delete", "nothing", "--remove"), "Give the two names"),
        (("--remove",), "Give the two names"),
        (("--remove", "--dry-run"), "exclude each other"),
    ):
        assert says in _merge(database, *words, code=2), words


def test_what_the_database_refuses_is_said_without_a_traceback(database: Database) -> None:
    open_orders(database, rules=())
    for words, says in (
        (("*", "delete", "nothing"), "nobody named"),
        (("insert", "delete", "first"), "nothing, last and sql:SCHEMA.FUNCTION"),
        (("insert", "delete", "sql:app.nowhere"), "there is no function app.nowhere"),
        (("insert", "delete", "--remove"), "no merge rule"),
    ):
        found, _, err = run_inturn(database.dsn, "topic", "merge", "orders", *words)
        assert found not in (0, 2), words
        assert says in err
        assert "Traceback" not in err


def test_a_dry_run_says_what_it_would_save_and_changes_nothing(database: Database) -> None:
    open_orders(database, rules=())
    for number in range(5):
        append(database, f"k{number}", "insert", "delete")
    append(database, "other", "note", "note")
    said = _merge(database, "insert", "delete", "nothing", "--dry-run")
    assert "12 commands are pending, 2 would be applied: 10 fewer (83%)." in said
    found = json.loads(_merge(database, "insert", "delete", "nothing", "--dry-run", "--json"))
    assert found["rules"] == [{"rule": "insert + delete -> nothing", "keys": 5, "merged": 10}]
    assert (found["pending"], found["remaining"]) == (12, 2)
    assert database.value("SELECT count(*) FROM inturn.merge_rule") == 0
    assert "0 commands are pending, 0 would be applied: 0 fewer." in _empty(database)


def _empty(database: Database) -> str:
    database.execute("SELECT inturn.create_topic('empty', 'sql:app.apply')")
    return _run(database, "topic", "merge", "empty", "--dry-run")


def test_show_says_which_numbers_became_what_and_by_which_rule(database: Database) -> None:
    open_orders(database)
    append(database, "a", ("insert", {"a": 1}), ("update", {"b": 2}), "note", "insert", "delete")
    database.execute("CALL inturn.apply()")
    out = _run(database, "show", "a")
    commands = out.split("\n\n")[1].splitlines()[1:]
    rows = {line.split()[0]: line for line in commands}
    assert "into 2" in rows["1"]
    assert "merged from 1" in rows["2"]
    assert "into nothing" in rows["4"]
    assert "took effect as 2 insert, by insert + update -> sql:app.combine" in out
    assert "became nothing, by insert + delete -> nothing" in out
    (key,) = json.loads(_run(database, "show", "a", "--json"))
    assert [command["state"] for command in key["commands"]] == [
        *("merged", "applied", "applied", "merged", "merged"),
    ]
    assert key["commands"][1]["merged_payload"] == {"a": 1, "b": 2}
    kinds = [(entry["kind"], entry["from_seq"], entry["to_seq"]) for entry in key["timeline"]]
    assert kinds == [("turn", 1, 5), ("merge", 4, 5), ("merge", 1, 2)]
    (secret,) = json.loads(_run(database, "show", "a", "--json", "--no-payload"))
    assert "merged_payload" not in secret["commands"][1]
    assert "as it was merged from 1: insert" in _run(database, "show", "a", "--payload")
