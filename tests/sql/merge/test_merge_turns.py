"""What a turn makes of neighbours that have a merge rule, and what it leaves alone."""

from __future__ import annotations

from support.database import Database
from support.merging import append, calls, merges, open_orders, state, violations


def _apply(database: Database) -> None:
    database.execute("CALL inturn.apply()")


def test_insert_and_delete_become_nothing_on_record(database: Database) -> None:
    open_orders(database)
    append(database, "a", ("insert", {"n": 1}), "delete")
    _apply(database)
    assert calls(database, "a") == []
    assert merges(database, "a") == [(1, None), (2, None)]
    assert database.execute("SELECT DISTINCT rule, epoch FROM inturn.merge") == [
        ("insert + delete -> nothing", 1)
    ]
    standing = "SELECT inturn.key_state(c), applied_seq FROM inturn.key_cursor c"
    assert database.execute(standing) == [("idle", 2)]
    assert violations(database) == []


def test_a_chain_becomes_one_and_then_nothing(database: Database) -> None:
    open_orders(database)
    append(database, "a", ("insert", {"a": 1}), ("update", {"b": 2}), ("update", {"c": 3}))
    append(database, "b", "insert", "update", "update", "delete", "insert")
    _apply(database)
    assert calls(database, "a") == [(3, "insert")]
    assert state(database) == {"a": {"a": 1, "b": 2, "c": 3}, "b": {}}
    assert merges(database, "a") == [(1, 3), (2, 3), (3, 3)]
    assert calls(database, "b") == [(5, "insert")]
    assert merges(database, "b") == [(1, None), (2, None), (3, None), (4, None)]
    kept = "SELECT name, payload FROM inturn.merge WHERE key = 'a' AND name IS NOT NULL"
    assert database.execute(kept) == [("insert", {"a": 1, "b": 2, "c": 3})]
    assert violations(database) == []


def test_only_neighbours_are_merged(database: Database) -> None:
    open_orders(database)
    append(database, "a", "insert", "note", "delete", ("set", {"x": 1}), "note", ("set", {"x": 2}))
    _apply(database)
    assert [seq for seq, _ in calls(database, "a")] == [1, 2, 3, 4, 5, 6]
    assert merges(database, "a") == []
    assert violations(database) == []


def test_a_topic_without_rules_merges_nothing(database: Database) -> None:
    open_orders(database, rules=())
    append(database, "a", "insert", "delete")
    _apply(database)
    assert calls(database, "a") == [(1, "insert"), (2, "delete")]


def test_the_later_of_two_is_taken_as_it_stands_in_the_log(database: Database) -> None:
    open_orders(database)
    append(database, "a", "insert", "note", ("set", {"x": 1}), ("set", {"x": 2}), ("set", {"x": 3}))
    _apply(database)
    assert calls(database, "a") == [(1, "insert"), (2, "note"), (5, "set")]
    assert merges(database, "a") == [(3, 5), (4, 5), (5, 5)]
    assert database.value("SELECT count(*) FROM inturn.merge WHERE payload IS NOT NULL") == 0
    assert state(database) == {"a": {"x": 3}}
    assert violations(database) == []


def test_who_waits_for_a_merged_number_is_told_that_it_is_applied(database: Database) -> None:
    open_orders(database)
    append(database, "a", "insert", "delete", ("insert", {}), ("update", {"x": 1}))
    _apply(database)
    assert merges(database, "a") == [(1, None), (2, None), (3, 4), (4, 4)]
    for seq in (1, 2, 3, 4):
        waited = "SELECT applied_seq, skipped FROM inturn.wait('orders', 'a', %s, '0')"
        assert database.execute(waited, [seq]) == [(4, False)]
