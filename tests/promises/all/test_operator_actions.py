"""What operators do through SQL: each action, what it refuses, and what it leaves in operator_action."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.database import Database, Session, until
from support.logins import connect_as
from support.oracle import Oracle
from support.race import Turn, append, blocked
from support.refusal import refusal

NO_KEY, REFUSED, BUSY, NO_REASON = "IT040", "IT041", "IT042", "IT043"


@pytest.fixture
def orders(witness: Database) -> Database:
    """The witness database; a command that fails holds its key at once."""
    witness.execute("UPDATE inturn.topic SET max_attempts = 1")
    return witness


def put(database: Database, key: str, *names: str) -> None:
    for name in names:
        database.execute("SELECT inturn.append('orders', %s, %s)", [key, name])


def apply(database: Database) -> None:
    database.execute("CALL inturn.apply()")


def applied(database: Database) -> bool:
    """Apply what is ready, as often as a condition is asked for."""
    apply(database)
    return True


def hold(database: Database, key: str = "x") -> None:
    """Three commands on the key, held at the second."""
    put(database, key, "insert", "fail", "delete")
    apply(database)
    assert state(database, key) == ("held", 1)


def state(database: Database, key: str) -> tuple[str, int]:
    (row,) = database.execute(
        "SELECT inturn.key_state(c), applied_seq FROM inturn.key_cursor c WHERE key = %s", [key]
    )
    return row[0], row[1]


def effects(database: Database, key: str = "x") -> list[int]:
    return [
        seq for (seq,) in database.execute("SELECT seq FROM app.witness WHERE key = %s ORDER BY id", [key])
    ]


def skips(database: Database, key: str = "x") -> list[tuple[Any, ...]]:
    return database.execute(
        "SELECT seq, epoch, skipped_by, reason FROM inturn.skip WHERE key = %s ORDER BY seq", [key]
    )


def actions(database: Database) -> list[tuple[Any, ...]]:
    return database.execute(
        "SELECT action, key, seq, reason, before ->> 'state', after ->> 'state'"
        " FROM inturn.operator_action WHERE action <> 'create' ORDER BY acted_at"
    )


def refuse(database: Database, sqlstate: str, query: str) -> str:
    """Run a statement that has to be refused; nothing is recorded or changed. Return the message."""
    look = (
        "SELECT (SELECT json_agg(c) FROM inturn.key_cursor c)::text,"
        " (SELECT json_agg(t) FROM inturn.topic t)::text"
    )
    before = (
        database.execute(look),
        len(actions(database)),
        database.value("SELECT count(*) FROM inturn.skip"),
    )
    error = refusal(database, query)
    assert error.sqlstate == sqlstate, error
    after = database.execute(look), len(actions(database)), database.value("SELECT count(*) FROM inturn.skip")
    assert after == before
    assert error.hint
    return str(error.message)


# Retry.


def test_retry_makes_a_held_key_ready_with_all_its_attempts(orders: Database) -> None:
    orders.execute("UPDATE inturn.topic SET max_attempts = 3")
    put(orders, "x", "fail")
    until(lambda: applied(orders) and state(orders, "x")[0] == "held", "held")
    orders.execute("SELECT inturn.retry('orders', 'x', 'the card is back')")
    assert state(orders, "x") == ("ready", 0)
    assert orders.value("SELECT attempts FROM inturn.key_cursor") == 0
    apply(orders)
    assert state(orders, "x")[0] == "retrying", "one attempt is used up, not all"
    assert actions(orders) == [("retry", "x", 1, "the card is back", "held", "ready")]


def test_retry_takes_a_retrying_key_before_its_time(orders: Database) -> None:
    orders.execute(
        "UPDATE inturn.topic SET max_attempts = 9, backoff_base = '1 hour', backoff_cap = '2 hours'"
    )
    put(orders, "x", "fail")
    apply(orders)
    assert state(orders, "x") == ("retrying", 0)
    orders.execute("SELECT inturn.retry('orders', 'x')")
    apply(orders)
    assert orders.value("SELECT count(*) FROM inturn.turn") == 2


def test_retry_wakes_a_sleeping_applier(orders: Database) -> None:
    hold(orders)
    listener = orders.connect()
    listener.execute('LISTEN "inturn.ready"')
    orders.execute("SELECT inturn.announce_sleep('{orders}')")
    orders.execute("SELECT inturn.retry('orders', 'x')")
    assert [heard.payload for heard in listener.notifies(timeout=60, stop_after=1)] == ["orders"]


@pytest.mark.parametrize("names", [[], ["insert"]], ids=["idle", "ready"])
def test_retry_of_a_key_that_did_not_fail_is_refused(orders: Database, names: list[str]) -> None:
    put(orders, "x", "insert")
    apply(orders)
    put(orders, "x", *names)
    now = "ready" if names else "idle"
    message = refuse(orders, REFUSED, "SELECT inturn.retry('orders', 'x')")
    assert message == f"key 'x' of topic 'orders' is {now}: there is no failed command to retry"


def test_retry_all_takes_the_keys_that_the_filters_find(orders: Database) -> None:
    for key in ("eu-1", "eu-2", "us-1"):
        hold(orders, key)
    put(orders, "eu-3", "hang")
    found = orders.execute(
        "SELECT key FROM inturn.retry_all(of_like => 'eu-%%', reason => 'mended') ORDER BY key"
    )
    assert found == [("eu-1",), ("eu-2",)]
    assert state(orders, "us-1")[0] == "held"
    assert state(orders, "eu-1") == ("ready", 1)
    assert [(action, key) for action, key, *_ in actions(orders)] == [("retry", "eu-1"), ("retry", "eu-2")]
    assert orders.execute("SELECT key FROM inturn.retry_all(of_topic => 'orders', of_like => 'eu-%%')") == []


def test_retry_all_leaves_out_what_another_operator_has_in_hand(orders: Database) -> None:
    for key in ("a", "b"):
        hold(orders, key)
    other, mine = orders.session(), orders.session()
    other.execute("SELECT inturn.skip('orders', 'a', 2, 'no')")
    bulk = mine.begin("SELECT key FROM inturn.retry_all()")
    assert not blocked(orders, mine, bulk)
    assert bulk.result() == [("b",)]


def test_retry_all_takes_no_key_that_has_no_failed_command(orders: Database) -> None:
    """NULL stands for held and retrying keys, as of list_keys' states for all that can be meant."""
    hold(orders)
    put(orders, "paused", "insert")
    orders.execute("SELECT inturn.pause('orders', 'paused')")
    assert orders.execute("SELECT key FROM inturn.retry_all(NULL, NULL)") == [("x",)]
    assert state(orders, "paused")[0] == "paused"
    assert orders.execute("SELECT key FROM inturn.retry_all(of_state => 'held,retrying')") == []
    for state_ in ("paused", "ready", "held,ready", ""):
        found = refusal(orders, f"SELECT inturn.retry_all(of_state => '{state_}')")
        assert found.sqlstate == "IT044"


@pytest.mark.parametrize("function", ["retry_all(", "cancel_rest_all('outage', "])
def test_keys_are_chosen_by_their_error(orders: Database, function: str) -> None:
    for key in ("eu-1", "us-1"):
        hold(orders, key)
    found = orders.execute(f"SELECT key FROM inturn.{function}of_error => 'refused eu%%')")
    assert found == [("eu-1",)]
    assert state(orders, "us-1")[0] == "held"


def test_cancel_rest_all_passes_over_what_is_pending_on_the_keys_that_the_filters_find(
    orders: Database,
) -> None:
    for key in ("a", "b", "c"):
        hold(orders, key)
    put(orders, "ready", "insert")
    other, mine = orders.session(), orders.session()
    other.execute("SELECT inturn.skip('orders', 'a', 2, 'no')")
    bulk = mine.begin(
        "SELECT key, seq, after -> 'cancelled' FROM inturn.cancel_rest_all('account closed', of_like => '_')"
    )
    assert not blocked(orders, mine, bulk)
    assert sorted(bulk.result()) == [("b", 2, 2), ("c", 2, 2)]
    mine.commit()
    other.rollback()
    assert [state(orders, key) for key in "abc"] == [("held", 1), ("idle", 3), ("idle", 3)]
    assert state(orders, "ready")[0] == "ready"
    assert orders.execute("SELECT * FROM inturn.verify('orders')") == []
    assert refusal(orders, "SELECT inturn.cancel_rest_all(' ')").sqlstate == NO_REASON


# Skip.


def test_skip_passes_over_the_next_command_and_no_other(orders: Database) -> None:
    hold(orders)
    orders.execute("SELECT inturn.skip('orders', 'x', 2, 'a test order')")
    assert state(orders, "x") == ("ready", 2)
    apply(orders)
    assert effects(orders) == [1, 3]
    assert state(orders, "x") == ("idle", 3)
    assert orders.execute("SELECT name FROM inturn.command_log WHERE seq = 2") == [("fail",)]
    assert skips(orders) == [(2, 2, "operator", "a test order")]
    assert orders.execute("SELECT epoch, from_seq, to_seq, outcome FROM inturn.turn ORDER BY epoch") == [
        (1, 1, 1, "held"),
        (3, 3, 3, "applied"),
    ]
    assert actions(orders) == [("skip", "x", 2, "a test order", "held", "ready")]


def test_skip_of_the_last_command_lets_the_key_go_idle_and_an_append_wakes_it(orders: Database) -> None:
    put(orders, "x", "fail")
    apply(orders)
    orders.execute("SELECT inturn.skip('orders', 'x', 1, 'no')")
    assert state(orders, "x") == ("idle", 1)
    last_turn = "SELECT applied_seq, drained FROM inturn.turn ORDER BY epoch DESC LIMIT 1"
    assert orders.execute(last_turn) == [(1, True)]
    put(orders, "x", "insert")
    assert state(orders, "x") == ("ready", 1)
    apply(orders)
    assert effects(orders) == [2]


@pytest.mark.parametrize("seq", [1, 3, 99, None])
def test_skip_of_any_other_command_is_refused(orders: Database, seq: int | None) -> None:
    hold(orders)
    message = refuse(orders, REFUSED, f"SELECT inturn.skip('orders', 'x', {seq or 'NULL'}, 'no')")
    assert message.startswith("key 'x' of topic 'orders' has 2 as its next command, not")


def test_skip_where_nothing_is_pending_is_refused(orders: Database) -> None:
    put(orders, "x", "insert")
    apply(orders)
    message = refuse(orders, REFUSED, "SELECT inturn.skip('orders', 'x', 2, 'no')")
    assert message == "key 'x' of topic 'orders' has no command 2: nothing is pending"


def test_skip_beside_an_open_append_leaves_the_key_awake(orders: Database) -> None:
    put(orders, "x", "fail")
    apply(orders)
    caller, operator = orders.session(), orders.session()
    append(caller, "x")
    skip = operator.begin("SELECT inturn.skip('orders', 'x', 1, 'no')")
    assert not blocked(orders, operator, skip), "an operator waits for a caller"
    operator.commit()
    assert state(orders, "x") == ("ready", 1)
    caller.commit()
    apply(orders)
    assert effects(orders) == [2]


def test_two_operators_skip_the_same_command_and_the_next_stays(orders: Database) -> None:
    hold(orders)
    one, two = orders.session(), orders.session()
    one.execute("SET inturn.acting_as = 'ann'")
    one.execute("SELECT inturn.skip('orders', 'x', 2, 'first')")
    late = two.begin("SELECT inturn.skip('orders', 'x', 2, 'second')")
    assert two.wait_blocked() == [one.pid]
    one.commit()
    error = late.exception()
    assert getattr(error, "sqlstate", None) == REFUSED
    assert "has 3 as its next command, not 2 (the last action on it: skip of 2 by ann at" in str(error)
    assert "first" in str(error)
    apply(orders)
    assert effects(orders) == [1, 3]


def test_an_applier_whose_key_was_moved_on_is_fenced_off(orders: Database) -> None:
    put(orders, "x", "insert", "delete")
    late, other = orders.session(), orders.session()
    (turn,) = Turn.claim(orders, late)
    late.commit()  # as one whose claim was lost
    orders.execute("SELECT inturn.skip('orders', 'x', 1, 'no')")
    (again,) = Turn.claim(orders, other)
    assert (again.applied_seq, again.epoch) == (1, 2)
    other.rollback()
    assert refusal(late.connection, *turn.finish(1)).sqlstate == "IT030"


# Cancel-rest.


def test_cancel_rest_passes_over_all_that_is_pending_and_what_comes_later_is_applied(
    orders: Database,
) -> None:
    hold(orders)
    orders.execute("SELECT inturn.cancel_rest('orders', 'x', 'account closed')")
    assert state(orders, "x") == ("idle", 3)
    assert [(seq, by, reason) for seq, _, by, reason in skips(orders)] == [
        (2, "operator", "account closed"),
        (3, "operator", "account closed"),
    ]
    put(orders, "x", "insert")
    apply(orders)
    assert effects(orders) == [1, 4]
    assert (
        orders.value("SELECT after -> 'cancelled' FROM inturn.operator_action WHERE action = 'cancel-rest'")
        == 2
    )


def test_cancel_rest_beside_an_open_append_leaves_that_to_be_applied(orders: Database) -> None:
    hold(orders)
    caller = orders.session()
    assert append(caller, "x") == 4
    orders.execute("SELECT inturn.cancel_rest('orders', 'x', 'no')")
    caller.commit()
    apply(orders)
    assert effects(orders) == [1, 4]


def test_cancel_rest_where_nothing_is_pending_is_refused(orders: Database) -> None:
    put(orders, "x", "insert")
    apply(orders)
    message = refuse(orders, REFUSED, "SELECT inturn.cancel_rest('orders', 'x', 'no')")
    assert message == "key 'x' of topic 'orders' has nothing pending: all is applied up to 1"


# Replay.


@pytest.mark.parametrize("skipped", [True, False], ids=["skipped", "applied"])
def test_replay_appends_it_again_at_the_end(orders: Database, skipped: bool) -> None:
    orders.execute("SELECT inturn.append('orders', 'x', 'insert', '{\"a\": 1}', 'once')")
    if skipped:
        orders.execute("SELECT inturn.skip('orders', 'x', 1, 'by mistake')")
    put(orders, "x", "delete")
    apply(orders)
    after = orders.value("SELECT after FROM inturn.replay('orders', 'x', 1, 'was needed')")
    assert after == {"seq": 3, "name": "insert"}
    apply(orders)
    assert effects(orders) == ([2, 3] if skipped else [1, 2, 3])
    assert orders.execute("SELECT name, payload FROM inturn.command_log WHERE seq = 3") == [
        ("insert", {"a": 1})
    ]
    again = refuse(orders, REFUSED, "SELECT inturn.replay('orders', 'x', 1, 'was needed')")
    assert again.startswith("key 'x' of topic 'orders' had command 1 replayed before, as 3")
    orders.execute("SELECT inturn.replay('orders', 'x', 3, 'and once more')")
    apply(orders)
    assert effects(orders)[-1] == 4


def test_replay_of_what_is_pending_or_not_there_is_refused(orders: Database) -> None:
    hold(orders)
    assert "has command 3 still pending" in refuse(
        orders, REFUSED, "SELECT inturn.replay('orders', 'x', 3, 'no')"
    )
    assert "has no command 9" in refuse(orders, REFUSED, "SELECT inturn.replay('orders', 'x', 9, 'no')")
    assert "has no command 1" in refuse(orders, REFUSED, "SELECT inturn.replay('orders', 'nobody', 1, 'no')")


def test_two_operators_replay_the_same_command_once(orders: Database) -> None:
    put(orders, "x", "insert")
    apply(orders)
    one, two = orders.session(), orders.session()
    one.execute("SELECT inturn.replay('orders', 'x', 1, 'one')")
    late = two.begin("SELECT inturn.replay('orders', 'x', 1, 'two')")
    assert two.wait_blocked() == [one.pid]
    one.commit()
    assert getattr(late.exception(), "sqlstate", None) == REFUSED
    assert orders.value("SELECT count(*) FROM inturn.command_log") == 2


# Amend.


def test_amend_changes_a_pending_command_and_keeps_the_original(orders: Database) -> None:
    hold(orders)
    orders.execute(
        "SELECT inturn.amend('orders', 'x', 2, 'a typo', name => 'update', payload => '{\"amount\": 2}')"
    )
    assert state(orders, "x") == ("held", 1)
    orders.execute("SELECT inturn.retry('orders', 'x')")
    apply(orders)
    names = [name for (name,) in orders.execute("SELECT name FROM app.witness ORDER BY id")]
    assert names == ["insert", "update", "delete"]
    assert orders.execute("SELECT before, after FROM inturn.operator_action WHERE action = 'amend'") == [
        ({"name": "fail", "payload": {}}, {"name": "update", "payload": {"amount": 2}})
    ]


def test_amend_of_what_was_applied_is_refused(orders: Database) -> None:
    hold(orders)
    message = refuse(orders, REFUSED, "SELECT inturn.amend('orders', 'x', 1, 'no', name => 'update')")
    assert message == "key 'x' of topic 'orders' has command 1 behind it: it is at 1"


@pytest.mark.parametrize(
    ("change", "sqlstate", "says"),
    [
        ("name => ''", "IT004", "command name for key 'x' is empty"),
        ("payload => to_jsonb(repeat('x', 2000000))", "IT003", "over the 1048576"),
        ("name => 'delete', payload => '{}'", REFUSED, "has command 3 like that already"),
        ("payload => '1', was => '{\"other\": 1}'", REFUSED, "another payload in command 3 than"),
    ],
)
def test_amend_refuses_what_append_would_and_what_is_no_change(
    orders: Database, change: str, sqlstate: str, says: str
) -> None:
    hold(orders)
    assert says in refuse(orders, sqlstate, f"SELECT inturn.amend('orders', 'x', 3, 'no', {change})")


def test_amend_waits_for_the_applier_that_may_have_read_the_command(orders: Database) -> None:
    put(orders, "x", "insert")
    applier, operator = orders.session(), orders.session()
    (turn,) = Turn.claim(orders, applier)
    late = operator.begin("SELECT inturn.amend('orders', 'x', 1, 'no', name => 'update')")
    assert operator.wait_blocked() == [applier.pid]
    turn.effects(applier, 1)
    applier.execute(*turn.finish(1))
    applier.commit()
    assert "has command 1 behind it" in str(late.exception())


# Pause and resume.


def test_a_paused_key_stands_still_and_goes_on_in_order(orders: Database) -> None:
    put(orders, "x", "insert")
    put(orders, "y", "insert")
    orders.execute("SELECT inturn.pause('orders', 'x', 'looking into it')")
    put(orders, "x", "update", "delete")
    apply(orders)
    assert state(orders, "x") == ("paused", 0)
    assert (effects(orders), effects(orders, "y")) == ([], [1])
    orders.execute("SELECT inturn.resume('orders', 'x')")
    apply(orders)
    assert effects(orders) == [1, 2, 3]
    assert state(orders, "x") == ("idle", 3)
    assert [(action, reason, was, then) for action, _, _, reason, was, then in actions(orders)] == [
        ("pause", "looking into it", "ready", "paused"),
        ("resume", None, "paused", "ready"),
    ]


def test_an_idle_key_can_be_paused_and_appends_leave_it_so(orders: Database) -> None:
    put(orders, "x", "insert")
    apply(orders)
    orders.execute("SELECT inturn.pause('orders', 'x')")
    put(orders, "x", "update", "delete")
    apply(orders)
    assert effects(orders) == [1]
    assert orders.value("SELECT ready_at FROM inturn.key_cursor") is None
    orders.execute("SELECT inturn.resume('orders', 'x')")
    apply(orders)
    assert effects(orders) == [1, 2, 3]


@pytest.mark.parametrize("pending", [True, False], ids=["ready", "idle"])
def test_a_pause_until_a_time_ends_by_itself(orders: Database, pending: bool) -> None:
    put(orders, "x", "insert")
    if not pending:
        apply(orders)
    paused = "SELECT paused_until FROM inturn.key_cursor"
    orders.execute("SELECT inturn.pause('orders', 'x', until => clock_timestamp() + interval '1 hour')")
    until_time = orders.value(paused)
    put(orders, "x", "update")
    assert orders.value("SELECT ready_at FROM inturn.key_cursor") == until_time
    orders.execute("SELECT inturn.pause('orders', 'x', until => clock_timestamp() + interval '300 ms')")
    until_time = orders.value(paused)
    until(lambda: applied(orders) and effects(orders) == [1, 2], "the pause to end")
    assert orders.execute("SELECT bool_and(at >= %s) FROM app.witness WHERE seq = 2", [until_time]) == [
        (True,)
    ]
    assert orders.execute("SELECT paused_at, paused_until FROM inturn.key_cursor") == [(None, None)]


def test_a_pause_waits_for_the_turn_in_hand(orders: Database) -> None:
    put(orders, "x", "insert", "update")
    applier, operator = orders.session(), orders.session()
    (turn,) = Turn.claim(orders, applier)
    pause = operator.begin("SELECT inturn.pause('orders', 'x')")
    assert operator.wait_blocked() == [applier.pid]
    turn.effects(applier, 1)
    applier.execute(*turn.finish(1))
    applier.commit()
    pause.result()
    operator.commit()
    assert state(orders, "x") == ("paused", 1)
    apply(orders)
    assert effects(orders) == [1]


def test_a_pause_can_be_given_another_end_and_repeated_it_is_refused(orders: Database) -> None:
    put(orders, "x", "insert")
    orders.execute("SELECT inturn.pause('orders', 'x', until => now() + interval '1 hour')")
    since = orders.value("SELECT paused_at FROM inturn.key_cursor")
    orders.execute("SELECT inturn.pause('orders', 'x')")
    assert orders.execute("SELECT paused_at, paused_until, ready_at FROM inturn.key_cursor") == [
        (since, None, None)
    ]
    assert "is paused already (the last action on it: pause by" in refuse(
        orders, REFUSED, "SELECT inturn.pause('orders', 'x')"
    )
    past = refuse(orders, REFUSED, "SELECT inturn.pause('orders', 'x', until => now() - interval '1 hour')")
    assert "which is past" in past


def test_a_pause_whose_end_comes_later_loses_no_key_that_was_never_drained(orders: Database) -> None:
    """Its finish met a caller that then rolled back: no append would wake it."""
    put(orders, "x", "insert")
    caller, applier = orders.session(), orders.session()
    append(caller, "x")
    (turn,) = Turn.claim(orders, applier)
    turn.effects(applier, 1)
    applier.execute(*turn.finish(1))
    applier.commit()
    caller.rollback()
    orders.execute("SELECT inturn.pause('orders', 'x')")
    orders.execute("SELECT inturn.pause('orders', 'x', until => clock_timestamp() + interval '100 ms')")
    put(orders, "x", "update")
    until(lambda: applied(orders) and effects(orders) == [1, 2], "the pause to end")


def test_pause_of_a_held_key_and_resume_of_one_that_is_not_paused_are_refused(orders: Database) -> None:
    hold(orders)
    assert "is held: it stands still already" in refuse(orders, REFUSED, "SELECT inturn.pause('orders', 'x')")
    assert "is held, not paused" in refuse(orders, REFUSED, "SELECT inturn.resume('orders', 'x')")


def test_skip_on_a_paused_key_keeps_it_paused(orders: Database) -> None:
    put(orders, "x", "insert", "update", "delete")
    orders.execute("SELECT inturn.pause('orders', 'x')")
    orders.execute("SELECT inturn.skip('orders', 'x', 1, 'no')")
    assert state(orders, "x") == ("paused", 1)
    apply(orders)
    orders.execute("SELECT inturn.cancel_rest('orders', 'x', 'no')")
    assert state(orders, "x") == ("paused", 3)
    put(orders, "x", "insert")
    orders.execute("SELECT inturn.resume('orders', 'x')")
    apply(orders)
    assert effects(orders) == [4]


def test_a_paused_topic_stands_still_and_the_others_do_not(orders: Database) -> None:
    orders.execute("SELECT inturn.create_topic('bills', 'sql:app.apply_order')")
    orders.execute("SELECT inturn.pause_topic('orders', 'the bank is down')")
    put(orders, "x", "insert", "delete")
    orders.execute("SELECT inturn.append('bills', 'y', 'insert')")
    apply(orders)
    assert (effects(orders), effects(orders, "y")) == ([], [1])
    assert orders.value("SELECT inturn.pending_commands('{orders,bills}')") == 0
    assert "is paused already" in refuse(orders, REFUSED, "SELECT inturn.pause_topic('orders')")
    orders.execute("SELECT inturn.resume_topic('orders')")
    apply(orders)
    assert effects(orders) == [1, 2]
    assert "is not paused" in refuse(orders, REFUSED, "SELECT inturn.resume_topic('orders')")
    assert [row[:2] for row in actions(orders)] == [("pause", ""), ("resume", "")]


def test_a_topics_pause_until_a_time_ends_by_itself(orders: Database) -> None:
    orders.execute("SELECT inturn.pause_topic('orders', until => clock_timestamp() + interval '1 hour')")
    put(orders, "x", "insert")
    apply(orders)
    assert effects(orders) == []
    orders.execute("UPDATE inturn.topic SET paused_until = clock_timestamp() + interval '300 ms'")
    until(lambda: applied(orders) and effects(orders) == [1], "the pause to end")
    orders.execute("SELECT inturn.pause_topic('orders')")


# Settings.


def test_set_topic_changes_what_is_given_and_nothing_else(orders: Database) -> None:
    before = orders.value("SELECT to_jsonb(t) FROM inturn.topic t")
    orders.execute("SELECT inturn.set_topic('orders', 'slower', max_attempts => 7, on_exhausted => 'skip')")
    after = orders.value("SELECT to_jsonb(t) FROM inturn.topic t")
    assert after == {**before, "max_attempts": 7, "on_exhausted": "skip"}
    assert orders.execute(
        "SELECT action, reason, before, after FROM inturn.operator_action WHERE action <> 'create'"
    ) == [("set", "slower", before, after)]
    assert "has these settings already" in refuse(
        orders, REFUSED, "SELECT inturn.set_topic('orders', max_attempts => 7)"
    )


@pytest.mark.parametrize(
    ("setting", "sqlstate"),
    [
        ("max_attempts => 0", "IT011"),
        ("on_exhausted => 'panic'", "IT011"),
        ("backoff_base => '9 days'", "IT011"),
        ("target => 'sql:app.nothing'", "IT012"),
    ],
)
def test_set_topic_refuses_what_create_topic_does(orders: Database, setting: str, sqlstate: str) -> None:
    refuse(orders, sqlstate, f"SELECT inturn.set_topic('orders', {setting})")


# What is common to all.

ACTIONS = {
    "retry": "SELECT inturn.retry('orders', '{key}')",
    "skip": "SELECT inturn.skip('orders', '{key}', 2, 'no')",
    "cancel-rest": "SELECT inturn.cancel_rest('orders', '{key}', 'no')",
    "amend": "SELECT inturn.amend('orders', '{key}', 2, 'no', name => 'update')",
    "pause": "SELECT inturn.pause('orders', '{key}')",
    "resume": "SELECT inturn.resume('orders', '{key}')",
}


@pytest.mark.parametrize("action", ACTIONS)
def test_an_unknown_key_and_an_unknown_topic_are_refused_by_name(orders: Database, action: str) -> None:
    query = ACTIONS[action].format(key="nobody")
    assert refuse(orders, NO_KEY, query) == "topic 'orders' has no key 'nobody'"
    assert "'bills'" in refuse(orders, "IT001", query.replace("'orders'", "'bills'"))


@pytest.mark.parametrize("action", ["skip", "cancel-rest", "amend", "replay"])
@pytest.mark.parametrize("reason", ["''", "'  '", "NULL"])
def test_what_changes_history_needs_a_reason(orders: Database, action: str, reason: str) -> None:
    hold(orders)
    query = {**ACTIONS, "replay": "SELECT inturn.replay('orders', '{key}', 1, 'no')"}[action]
    refuse(orders, NO_REASON, query.format(key="x").replace("'no'", reason))


@pytest.mark.parametrize("action", ACTIONS)
def test_a_key_in_other_hands_is_waited_for_no_longer_than_told_and_the_holder_is_named(
    orders: Database, action: str
) -> None:
    hold(orders)
    holder: Session = orders.session(application_name="night shift")
    holder.execute("SELECT FROM inturn.ticket WHERE key = 'x' FOR UPDATE")
    message = refuse(orders, BUSY, "SET lock_timeout = '20 ms'; " + ACTIONS[action].format(key="x"))
    assert message.startswith("key 'x' of topic 'orders' is in other hands: night shift (backend ")
    assert f"(backend {holder.pid} of" in message
    assert message.endswith("doing nothing in it")


@pytest.mark.parametrize("action", [*ACTIONS, "replay"])
def test_rolled_back_it_changes_nothing(orders: Database, action: str) -> None:
    hold(orders)
    hold(orders, "y")
    if action == "resume":
        orders.execute("SELECT inturn.skip('orders', 'x', 2, 'no'); SELECT inturn.pause('orders', 'x')")
    if action == "pause":
        orders.execute("SELECT inturn.retry('orders', 'x')")
    look = "SELECT json_agg(c)::text FROM inturn.{} c"
    tables = (
        *("key_sequence", "ticket", "key_mark", "command_log"),
        *("skip", "operator_action", "turn", "topic", "wake_hint"),
    )
    before = [orders.execute(look.format(table)) for table in tables]
    session = orders.session()
    query = {**ACTIONS, "replay": "SELECT inturn.replay('orders', '{key}', 1, 'no')"}[action]
    session.execute(query.format(key="x"))
    assert session.execute("SELECT count(*) FROM inturn.operator_action WHERE action <> 'create'")[0][
        0
    ] == 1 + len(actions(orders))
    session.rollback()
    assert [orders.execute(look.format(table)) for table in tables] == before


def test_no_action_works_on_an_old_snapshot(orders: Database) -> None:
    hold(orders)
    session = orders.session()
    session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    error = refusal(session.connection, "SELECT inturn.skip('orders', 'x', 2, 'no')")
    assert error.sqlstate == "IT031"


def test_who_acted_is_the_login_and_what_the_session_says(orders: Database) -> None:
    hold(orders)
    with connect_as(orders, "inturn_operator") as operator:
        login = operator.execute("SELECT session_user").fetchone()
        operator.execute("SELECT set_config('inturn.os_user', 'root@db1', false)")
        operator.execute("SELECT set_config('inturn.acting_as', 'ann@example.com', false)")
        operator.execute("SELECT inturn.skip('orders', 'x', 2, 'said the shop')")
    assert login is not None
    row = orders.execute(
        "SELECT db_user, os_user, acting_as, reason, before, after, acted_at <= clock_timestamp()"
        " FROM inturn.operator_action WHERE action = 'skip'"
    )[0]
    assert row[:4] == (login[0], "root@db1", "ann@example.com", "said the shop")
    assert row[4]["last_error"].startswith("refused x")
    assert (row[4]["applied_seq"], row[5]["applied_seq"], row[6]) == (1, 2, True)


def test_an_operator_changes_nothing_past_the_record(orders: Database) -> None:
    hold(orders)
    with connect_as(orders, "inturn_operator") as operator:
        for statement in (
            "UPDATE inturn.key_cursor SET applied_seq = 9",
            "UPDATE inturn.ticket SET applied_seq = 9",
            "DELETE FROM inturn.key_mark",
            "UPDATE inturn.turn SET drained = true",
            "UPDATE inturn.topic SET max_attempts = 9",
            "DELETE FROM inturn.operator_action",
            "INSERT INTO inturn.operator_action (topic, action) VALUES ('orders', 'skip')",
            "INSERT INTO inturn.skip VALUES ('orders', 'x', 2, 9, 'operator')",
            "UPDATE inturn.command_log SET payload = '{}'",
            "SELECT inturn._record_action('orders', 'x', 1, 'skip', 'no', NULL, NULL)",
            "SELECT inturn._move_past(c, 3) FROM inturn.key_cursor c",
            "SELECT inturn._save_key(c, c) FROM inturn.key_cursor c",
            "SELECT inturn._put_to_sleep(c, c) FROM inturn.key_cursor c",
        ):
            assert refusal(operator, statement).sqlstate == "42501", statement


def test_everything_an_operator_did_leaves_what_the_oracle_accepts(orders: Database) -> None:
    oracle = Oracle(orders)
    hold(orders)
    hold(orders, "y")
    hold(orders, "z")
    for query in (
        "SELECT inturn.skip('orders', 'x', 2, 'no')",
        "SELECT inturn.cancel_rest('orders', 'y', 'no')",
        "SELECT inturn.replay('orders', 'y', 1, 'again')",
        "SELECT inturn.amend('orders', 'z', 2, 'no', name => 'update')",
        "SELECT inturn.pause('orders', 'y')",
        "SELECT inturn.retry('orders', 'z')",
        "SELECT inturn.resume('orders', 'y')",
    ):
        orders.execute(query)
        oracle.check()
    apply(orders)
    oracle.check()
    assert [state(orders, key)[0] for key in "xyz"] == ["idle"] * 3
    assert json.loads(
        orders.value(
            "SELECT json_agg(action ORDER BY acted_at)::text FROM inturn.operator_action"
            " WHERE action <> 'create'"
        )
    ) == [*("skip", "cancel-rest", "replay", "amend", "pause", "retry", "resume")]
