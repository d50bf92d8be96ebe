"""What operators do through SQL: skip and cancel-rest; what they refuse and record."""

from __future__ import annotations

import pytest
from support.database import Database
from support.operating import (
    REFUSED,
    actions,
    apply,
    effects,
    hold,
    put,
    refuse,
    skips,
    state,
)
from support.race import Turn, append, blocked
from support.refusal import refusal

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
