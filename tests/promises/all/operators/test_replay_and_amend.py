"""What operators do through SQL: replay and amend; what they refuse and record."""

from __future__ import annotations

import pytest
from support.database import Database
from support.operating import (
    REFUSED,
    apply,
    effects,
    hold,
    put,
    refuse,
    state,
)
from support.race import Turn

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
