"""P3 with merging: what may have been begun, failed or changed by hand is not merged; all or nothing."""

from __future__ import annotations

import psycopg
import pytest
from support.database import Database, until
from support.merging import append, calls, merges, open_orders, state, violations
from support.race import replace_in

_CLAIM = "SELECT epoch, seq, name, payload FROM inturn.claim('{orders}', 1, NULL, 'client')"


def _apply(database: Database) -> None:
    until(lambda: _applied(database), "all of it")


def _applied(database: Database) -> bool:
    database.execute("CALL inturn.apply()")
    ready = "SELECT count(*) FROM inturn.ticket WHERE ready_at < 'infinity'"
    return not database.value(ready)


def test_a_command_that_failed_is_not_merged_afterwards(database: Database) -> None:
    open_orders(database, settings="max_attempts => 1")
    append(database, "a", ("insert", {"flaky": 1}))
    _apply(database)
    assert database.value("SELECT held_at FROM inturn.key_cursor") is not None
    append(database, "a", "delete")
    database.execute("SELECT inturn.retry('orders', 'a')")
    _apply(database)
    assert merges(database, "a") == []
    assert violations(database) == []


def test_what_was_amended_or_replayed_is_not_merged(database: Database) -> None:
    open_orders(database)
    append(database, "a", "insert", "update", "update", "update")
    database.execute("SELECT inturn.amend('orders', 'a', 3, 'a test', payload => '{\"x\": 9}')")
    _apply(database)
    assert merges(database, "a") == [(1, 2), (2, 2)]
    assert [seq for seq, _ in calls(database, "a")] == [2, 3, 4]
    database.execute("SELECT inturn.replay('orders', 'a', 3, 'a test')")
    append(database, "a", "update", "update")
    _apply(database)
    assert [seq for seq, _ in calls(database, "a")] == [2, 3, 4, 5, 7]
    assert violations(database) == []


def test_what_an_applier_outside_has_begun_and_let_go_is_not_merged(database: Database) -> None:
    open_orders(database)
    append(database, "a", "insert")
    (begun,) = database.execute(_CLAIM)
    # It may have taken effect: nobody said so, as after an answer that did not come.
    database.execute("SELECT inturn.release('orders', 'a', %s)", [begun[0]])
    append(database, "a", "delete")
    claimed = database.execute(_CLAIM)
    assert [(seq, name) for _, seq, name, _ in claimed] == [(1, "insert"), (2, "delete")]


def test_what_is_begun_and_lost_is_not_merged(database: Database) -> None:
    open_orders(database, settings="lease => '10 ms'")
    append(database, "a", "insert")
    assert len(database.execute(_CLAIM)) == 1
    append(database, "a", "delete")
    claimed = until(lambda: database.execute(_CLAIM), "the lease is over")
    assert [seq for _, seq, _, _ in claimed] == [1]


def test_a_missing_number_parts_neighbours(database: Database) -> None:
    open_orders(database, settings="numbering => 'given'")
    for seq, name in ((1, "insert"), (2, "update"), (4, "delete")):
        database.execute("SELECT inturn.append('orders', 'a', %s, seq => %s)", [name, seq])
    _apply(database)
    assert calls(database, "a") == [(2, "insert")]
    database.execute("SELECT inturn.append('orders', 'a', 'update', seq => 3)")
    _apply(database)
    # The key did not go idle in between: its next command is taken as it stands.
    assert calls(database, "a") == [(2, "insert"), (3, "update"), (4, "delete")]
    assert violations(database) == []


def test_the_holder_of_a_lease_reports_the_number_it_was_given(database: Database) -> None:
    open_orders(database)
    append(
        database,
        "a",
        "insert",
        "delete",
        ("insert", {"a": 1}),
        ("update", {"b": 2}),
        "note",
        "insert",
        "delete",
    )
    claimed = database.execute(_CLAIM)
    assert [row[1:] for row in claimed] == [(4, "insert", {"a": 1, "b": 2}), (5, "note", {})]
    epoch = claimed[0][0]
    for wrong in (1, 2, 3, 5, 7):
        with pytest.raises(psycopg.Error, match="is not the next: that is 4") as refused:
            database.execute("SELECT inturn.advance('orders', 'a', %s, %s)", [epoch, wrong])
        assert refused.value.sqlstate == "IT032"
    assert merges(database, "a") == []
    database.execute("SELECT inturn.advance('orders', 'a', %s, 4)", [epoch])
    assert merges(database, "a") == [(1, None), (2, None), (3, 4), (4, 4)]
    database.execute("SELECT inturn.advance('orders', 'a', %s, 4)", [epoch])
    database.execute("SELECT inturn.advance('orders', 'a', %s, 5)", [epoch])
    database.execute("SELECT inturn.release('orders', 'a', %s)", [epoch])
    assert merges(database, "a")[-2:] == [(6, None), (7, None)]
    standing = "SELECT inturn.key_state(c), applied_seq FROM inturn.key_cursor c"
    assert database.execute(standing) == [("idle", 7)]
    assert violations(database) == []


def test_a_rule_that_is_removed_meanwhile_leaves_a_lease_as_it_is(database: Database) -> None:
    open_orders(database, rules=[("set", "set", "last")])
    append(database, "a", "set", "set")
    ((epoch, seq, _, _),) = database.execute(_CLAIM)
    assert seq == 2
    database.execute("SELECT inturn.remove_merge_rule('orders', 'set', 'set')")
    database.execute("SELECT inturn.advance('orders', 'a', %s, 2)", [epoch])
    database.execute("SELECT inturn.release('orders', 'a', %s)", [epoch])
    assert merges(database, "a") == [(1, 2), (2, 2)]
    assert violations(database) == []


def test_a_failure_of_what_was_merged_takes_the_commands_as_they_stand(database: Database) -> None:
    """However few attempts there are, and whatever was asked for: none of them was tried by itself."""
    open_orders(database, settings="max_attempts => 1, on_exhausted => 'skip', backoff_base => '1 ms'")
    append(database, "a", "insert", "update")
    ((epoch, seq, _, _),) = database.execute(_CLAIM)
    fail = "SELECT inturn.fail('orders', 'a', %s, %s, 'refused', '{\"verdict\": \"skip\"}')"
    assert database.value(fail, [epoch, seq]) == "retrying"
    assert merges(database, "a") == []
    _apply(database)
    assert calls(database, "a") == [(1, "insert"), (2, "update")]
    assert database.value("SELECT count(*) FROM inturn.skip") == 0
    assert violations(database) == []


def test_a_turn_that_is_rolled_back_has_merged_nothing(database: Database) -> None:
    open_orders(database, target="python")
    append(database, "a", "insert", "delete", "insert", "update")
    session = database.session()
    claimed = session.execute("SELECT seq, name FROM inturn.claim_commands('orders')")
    assert claimed == [(2, None), (4, "insert")]
    session.rollback()
    assert database.value("SELECT count(*) FROM inturn.merge_plan") == 0
    # Nothing was begun: the next turn merges them.
    assert session.execute("SELECT seq, name FROM inturn.claim_commands('orders')") == claimed


def test_a_plan_that_no_turn_followed_is_forgotten(database: Database) -> None:
    """A turn that begins nothing leaves its key as it was: with the epoch under which it has planned."""
    open_orders(database, target="python")
    append(database, "a", "set", "set")
    assert database.execute("SELECT seq FROM inturn.claim_commands('orders')") == [(2,)]
    assert database.value("SELECT count(*) FROM inturn.merge_plan") == 2
    database.execute("SELECT inturn.remove_merge_rule('orders', 'set', 'set')")
    database.execute("SELECT inturn.set_topic('orders', target => 'sql:app.apply')")
    _apply(database)
    assert calls(database, "a") == [(1, "set"), (2, "set")]
    assert merges(database, "a") == []


@pytest.mark.parametrize("end", ["failed", "released", "lost"])
def test_what_was_begun_as_one_is_not_merged_in_part_with_what_comes_later(
    database: Database, end: str
) -> None:
    """It may have taken effect outside under its last number: then one by one its commands are no news."""
    open_orders(database, rules=[("set", "set", "last"), ("set", "unset", "nothing")])
    append(database, "a", "set", "set", "set", "note", "set", "set")
    if end == "lost":
        database.execute("SELECT inturn.set_topic('orders', lease => '10 ms')")
    (begun, *_) = database.execute(_CLAIM)
    assert begun[1] == 3
    if end == "lost":
        database.execute("SELECT inturn.set_topic('orders', lease => '1 hour')")
    elif end == "failed":
        database.execute("SELECT inturn.fail('orders', 'a', %s, 3, 'no answer came')", [begun[0]])
    else:
        database.execute("SELECT inturn.release('orders', 'a', %s)", [begun[0]])
    append(database, "a", "unset")
    taken = []
    while database.value("SELECT count(*) FROM inturn.ticket"):
        for epoch, seq, _, _ in until(lambda: database.execute(_CLAIM), "the key is ready"):
            taken.append(seq)
            database.execute("SELECT inturn.advance('orders', 'a', %s, %s)", [epoch, seq])
        database.execute("SELECT inturn.release('orders', 'a', %s)", [epoch])
    # What was planned beyond it was not begun.
    assert taken == [1, 2, 3, 4]
    assert merges(database, "a") == [(5, None), (6, None), (7, None)]
    assert violations(database) == []


# The guards.


def _begun_outside(database: Database) -> bool:
    append(database, "a", "note")
    _apply(database)
    append(database, "a", "insert")
    ((epoch, *_),) = database.execute(_CLAIM)
    database.execute("SELECT inturn.release('orders', 'a', %s)", [epoch])
    append(database, "a", "delete")
    return len(database.execute(_CLAIM)) == 2


def _advanced_outside(database: Database) -> bool:
    append(database, "a", "note", "insert")
    ((epoch, *_), _) = database.execute(_CLAIM)
    database.execute("SELECT inturn.advance('orders', 'a', %s, 1)", [epoch])
    database.execute("SELECT inturn.release('orders', 'a', %s)", [epoch])
    append(database, "a", "delete")
    return len(database.execute(_CLAIM)) == 2


def _begun_as_one(database: Database) -> bool:
    append(database, "a", "set", "set", "set")
    ((epoch, *_),) = database.execute(_CLAIM)
    database.execute("SELECT inturn.fail('orders', 'a', %s, 3, 'no')", [epoch])
    append(database, "a", "delete")
    _apply(database)
    return calls(database, "a") == [(1, "set"), (2, "set"), (3, "set"), (4, "delete")]


def _planned_only(database: Database) -> bool:
    append(database, "a", "set", "set", "note", "set", "set", "set")
    (begun, *_) = database.execute(_CLAIM)
    database.execute("SELECT inturn.advance('orders', 'a', %s, 2)", [begun[0]])
    database.execute("SELECT inturn.fail('orders', 'a', %s, 3, 'no')", [begun[0]])
    _apply(database)
    return merges(database, "a") == [(1, 2), (2, 2), (5, 6), (6, 6)]


def _amended(database: Database) -> bool:
    append(database, "a", "insert", "update")
    database.execute("SELECT inturn.amend('orders', 'a', 2, 'a test', payload => '{\"x\": 9}')")
    _apply(database)
    return merges(database, "a") == []


def _replayed(database: Database) -> bool:
    append(database, "a", "note", "update")
    _apply(database)
    append(database, "a", "update")
    database.execute("SELECT inturn.replay('orders', 'a', 2, 'a test')")
    _apply(database)
    return merges(database, "a") == []


def _parted(database: Database) -> bool:
    append(database, "a", "update", "insert", "delete", "update")
    _apply(database)
    return merges(database, "a") == [(2, None), (3, None)]


def _failed_merged(database: Database) -> bool:
    database.execute("SELECT inturn.set_topic('orders', max_attempts => 1)")
    append(database, "a", "insert", "update")
    ((epoch, seq, *_),) = database.execute(_CLAIM)
    outcome = database.value("SELECT inturn.fail('orders', 'a', %s, %s, 'no')", [epoch, seq])
    return bool(outcome == "retrying")


def _stale(database: Database) -> bool:
    database.execute("SELECT inturn.claim_commands('orders')")
    append(database, "a", "set", "set")
    database.execute("SELECT inturn.claim_commands('orders')")
    for then in ("set", "delete"):
        database.execute("SELECT inturn.remove_merge_rule('orders', 'set', %s)", [then])
    _apply(database)
    return merges(database, "a") == []


def _written(database: Database) -> bool:
    database.execute("""
        CREATE TABLE app.written (x int);
        CREATE FUNCTION app.write(a inturn.command, b inturn.command) RETURNS jsonb LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO app.written VALUES (1); RETURN '{}'; END $$;
        SELECT inturn.merge_rule('orders', 'note', 'note', 'sql:app.write');
    """)
    append(database, "a", "note", "note")
    _apply(database)
    return bool(database.value("SELECT count(*) FROM inturn.turn WHERE error IS NOT NULL") == 1)


_GUARDS = {
    "begun after another": (_advanced_outside, "_mergeable_commands", r" - 1 AND t\.drained", " - 1"),
    "begun, with no turn": (_begun_outside, "_mergeable_commands", r"AND t\.epoch = .*? - 1 AND", "AND"),
    "begun as one": (_begun_as_one, "_mergeable_commands", r" OR c\.seq <@ ANY \(b\.begun\)", ""),
    "begun, and not only planned": (
        _planned_only,
        "_begun_merges",
        r"WHERE t\.to_seq IS NULL OR",
        "WHERE true OR",
    ),
    "amended": (_amended, "_mergeable_commands", r"a\.action = 'amend'", "false"),
    "replayed": (_replayed, "_mergeable_commands", r"'inturn\.replay:'", "'x'"),
    "neighbours": (_parted, "_fold_merges", r" OR first\.seq \+ 1 <> starts\[depth\]", ""),
    "not tried yet": (
        _failed_merged,
        "_record_failure",
        r"IF verdict <> 'outage'",
        "IF false AND verdict <> 'outage'",
    ),
    "forgotten": (_stale, "_save_merges", r"DELETE FROM.*?;", ""),
    "read only": (_written, "_call_merge", r"'transaction_read_only', 'on'", "'inturn.nothing', 'on'"),
}


@pytest.mark.parametrize("guard", _GUARDS)
def test_each_guard_is_needed(database: Database, guard: str) -> None:
    scene, function, pattern, without = _GUARDS[guard]
    open_orders(database)
    replace_in(database, function, (pattern, without))
    try:
        right = scene(database)
    except psycopg.errors.UniqueViolation:
        right = False
    assert not right


@pytest.mark.parametrize("guard", _GUARDS)
def test_with_its_guard_each_scene_is_right(database: Database, guard: str) -> None:
    open_orders(database)
    assert _GUARDS[guard][0](database)


# verify.

_TAMPERINGS = {
    "a number is missing": "DELETE FROM inturn.merge_plan WHERE seq = 2",
    "it became another": "UPDATE inturn.merge_plan SET into_seq = NULL WHERE seq = 1",
    "its turn did not get there": "UPDATE inturn.merge_plan SET to_seq = 9, into_seq = 9",
    "it was passed over too": "INSERT INTO inturn.skip VALUES ('orders', 'a', 2, 1, 'operator', 'x')",
    "it is not in the log": "DELETE FROM inturn.command_log WHERE seq = 2",
}


@pytest.mark.parametrize("what", _TAMPERINGS)
def test_verify_finds_a_merge_that_is_not_whole(database: Database, what: str) -> None:
    open_orders(database)
    append(database, "a", "insert", "update", "update")
    _apply(database)
    assert state(database) == {"a": {}}
    assert violations(database) == []
    database.execute(_TAMPERINGS[what])
    found = {row[0]: row for row in violations(database)}
    assert "merge-broken" in found
    assert found["merge-broken"][5]
