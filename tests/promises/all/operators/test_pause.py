"""What operators do through SQL: pause, resume and settings; what they refuse and record."""

from __future__ import annotations

import pytest
from support.database import Database, until
from support.operating import (
    REFUSED,
    actions,
    applied,
    apply,
    effects,
    hold,
    put,
    refuse,
    state,
)
from support.race import Turn, append
from support.roles import OWNER

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


#: What comes in a statement after the pauses of key `x` and of its topic have ended in it, and what it says.
#: The key is retrying; then its command is in hand by lease.
AFTER_PAUSE = (
    ("SELECT inturn.key_state(c) FROM inturn.key_cursor c", "retrying"),
    ("SELECT state || ' ' || topic_paused FROM inturn.list_keys()", "retrying false"),
    ("SELECT retrying || ' ' || paused || ' ' || (paused_at IS NULL) FROM inturn.topic_status()", "1 0 true"),
    ("SELECT retrying::text FROM inturn.list_errors()", "1"),
    (
        """SELECT string_agg(coalesce(labels->>'state', metric), ' ') FROM inturn.topic_metrics()
            WHERE metric IN ('inturn_keys', 'inturn_topic_paused') AND value > 0""",
        "retrying",
    ),
    ("SELECT state FROM inturn.progress('orders', 'x')", "retrying"),
    ("SELECT state FROM inturn.wait_state('orders', 'x', 1)", "retrying"),
    ("SELECT inturn.resume('orders', 'x')", "key 'x' of topic 'orders' is retrying, not paused"),
    ("SELECT before->>'state' FROM inturn.pause('orders', 'x')", "retrying"),
    ("SELECT before->>'state' FROM inturn.retry('orders', 'x')", "retrying"),
    ("SELECT count(*)::text FROM inturn.claim('{orders}'::text[], 1, '1 hour', 'me')", "1"),
    ("SELECT (inturn.advance('orders', 'x', epoch, 1) IS NULL)::text FROM inturn.key_cursor", "false"),
    ("SELECT inturn.release('orders', 'x', epoch)::text FROM inturn.key_cursor", ""),
)


def test_what_comes_after_a_pause_has_ended_in_the_same_statement_knows_that(orders: Database) -> None:
    """CALL apply is one statement for minutes, and so is an operator's that waits for a lock."""
    orders.execute("""
        UPDATE inturn.topic SET max_attempts = 2, backoff_base = '1 hour', backoff_cap = '1 hour';
        CREATE FUNCTION app.after_pause(does text) RETURNS text LANGUAGE plpgsql AS $$
        DECLARE
            said text;
            long interval := '1 ms';
            until timestamptz;
        BEGIN
            LOOP
                BEGIN
                    until := clock_timestamp() + long;
                    PERFORM inturn.pause('orders', 'x', until => until);
                    PERFORM inturn.pause_topic('orders', until => until);
                    EXIT;
                EXCEPTION WHEN SQLSTATE 'IT041' THEN
                    long := long * 2; -- it is past already
                END;
            END LOOP;
            WHILE (SELECT paused_until > clock_timestamp() FROM inturn.key_cursor) LOOP END LOOP;
            EXECUTE does INTO said;
            RETURN said;
        EXCEPTION WHEN SQLSTATE 'IT041' THEN
            RETURN split_part(SQLERRM, ' (', 1);
        END $$;
    """)
    put(orders, "x", "fail")
    apply(orders)
    with orders.connect(user=OWNER) as session:
        for does, says in AFTER_PAUSE:
            said = session.execute("SELECT app.after_pause(%s)", [does]).fetchone()
            assert (does, said) == (does, (says,))
    assert state(orders, "x") == ("idle", 1)


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
