"""What operators do through SQL: retry, and the actions on many keys; what they refuse and record."""

from __future__ import annotations

import pytest
from support.database import Database, until
from support.operating import (
    NO_REASON,
    REFUSED,
    actions,
    applied,
    apply,
    hold,
    put,
    refuse,
    state,
)
from support.race import blocked
from support.refusal import refusal
from support.roles import APPLIER, OWNER

# Retry.


def test_retry_makes_a_held_key_ready_with_all_its_attempts(orders: Database) -> None:
    orders.execute("UPDATE inturn.topic SET max_attempts = 3")
    put(orders, "x", "fail")
    until(lambda: applied(orders) and state(orders, "x")[0] == "held", "held")
    # A call that takes longer than the backoff would try again.
    orders.execute("UPDATE inturn.topic SET backoff_base = '1 hour', backoff_cap = '1 hour'")
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


def test_retry_takes_a_key_before_its_time_that_was_put_off_by_an_outage(orders: Database) -> None:
    """That counts as no attempt, so the key is not retrying; it may be an hour until it is tried again."""
    put(orders, "x", "insert")
    with orders.connect(user=APPLIER, autocommit=False) as applier:
        applier.execute("SELECT FROM inturn.claim('orders')")
        down = "SELECT inturn.fail('orders', 'x', 1, 1, 1, 'down', 'me', 'outage', '1 h')"
        assert applier.execute(down).fetchall() == [("retrying",)]
    assert state(orders, "x")[0] == "ready"
    apply(orders)
    assert state(orders, "x")[0] == "ready"
    orders.execute("SELECT inturn.retry('orders', 'x', 'it is back')")
    assert refusal(orders, "SELECT inturn.retry('orders', 'x')").sqlstate == REFUSED
    apply(orders)
    assert state(orders, "x")[0] == "idle"


def test_retry_wakes_a_sleeping_applier(orders: Database) -> None:
    hold(orders)
    listener = orders.connect(user=OWNER)
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
