"""What holds for every action of operators."""

from __future__ import annotations

import json

import pytest
from support.database import Database, Session
from support.logins import connect_as
from support.operating import (
    BUSY,
    NO_KEY,
    NO_REASON,
    actions,
    apply,
    hold,
    refuse,
    state,
)
from support.oracle import Oracle
from support.refusal import refusal

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
    assert message.startswith("key 'x' of topic 'orders' is in hand: night shift (backend ")
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
            "SELECT inturn._make_idle(c, c) FROM inturn.key_cursor c",
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
