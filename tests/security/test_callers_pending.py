"""max_pending: what callers can pile up on one key, and on no other, is bounded."""

from __future__ import annotations

import pytest
from support.arrivals import number
from support.database import Database
from support.logins import connect_as
from support.process import run_inturn
from support.race import replace_in
from support.refusal import refusal

from inturn.outbox import TooManyPending, append

APPEND = "SELECT inturn.append(%s, 'x', 'insert')"


@pytest.fixture
def bounded(witness: Database) -> Database:
    """Topics `orders` and `posts`, which numbers on arrival; a key may have 3 commands pending."""
    witness.execute("SELECT inturn.set_topic('orders', max_pending => 3)")
    witness.execute(
        "SELECT inturn.create_topic('posts', 'sql:app.apply_order', numbering => 'arrival', max_pending => 3)"
    )
    return witness


def _fill(database: Database, topic: str, count: int = 3) -> None:
    for _ in range(count):
        database.execute(APPEND, [topic])
        number(database)


@pytest.mark.parametrize("topic", ["orders", "posts"])
def test_a_full_key_takes_no_more_until_an_applier_has_caught_up(bounded: Database, topic: str) -> None:
    caller = connect_as(bounded, "inturn_caller")
    _fill(bounded, topic)
    said = refusal(caller, APPEND, [topic])
    assert said.sqlstate == "IT009"
    assert said.message == f"key 'x' of topic '{topic}' has 3 commands pending; its topic allows 3"
    with pytest.raises(TooManyPending):
        append(caller, topic, "x", "insert")
    assert refusal(caller, "SELECT inturn.append_many(%s, '{y,x}', '{a,b}')", [topic]).sqlstate == "IT009"
    append(caller, topic, "y", "insert")  # another key's own
    assert bounded.value("SELECT count(*) FROM inturn.command_log WHERE key = 'x'") == 3
    number(bounded)
    bounded.execute("CALL inturn.apply()")
    _fill(bounded, topic)
    assert refusal(caller, APPEND, [topic]).sqlstate == "IT009"


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_it_holds_on_a_snapshot_too(bounded: Database, level: str) -> None:
    _fill(bounded, "orders", 2)
    caller = bounded.session()
    caller.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
    caller.execute(APPEND, ["orders"])
    assert refusal(caller.connection, APPEND, ["orders"]).sqlstate == "IT009"


def test_two_callers_cannot_go_over_it_together(bounded: Database) -> None:
    _fill(bounded, "orders", 2)
    first, second = bounded.session(), bounded.session()
    first.execute(APPEND, ["orders"])
    waiting = second.begin(APPEND, ["orders"])
    assert second.wait_blocked() == [first.pid]
    first.commit()
    assert getattr(waiting.exception(), "sqlstate", "") == "IT009"
    second.rollback()
    assert bounded.value("SELECT count(*) FROM inturn.command_log") == 3


def test_what_an_operator_passed_over_makes_room(bounded: Database) -> None:
    """Where the key stands, its ticket says then; its last turn says less."""
    _fill(bounded, "orders")
    bounded.execute("SELECT inturn.skip('orders', 'x', 1, 'because')")
    assert bounded.value(APPEND, ["orders"]) == 4
    assert refusal(bounded, APPEND, ["orders"]).sqlstate == "IT009"
    bounded.execute("SELECT inturn.cancel_rest('orders', 'x', 'because')")
    _fill(bounded, "orders")
    assert refusal(bounded, APPEND, ["orders"]).sqlstate == "IT009"


@pytest.mark.parametrize("topic", ["orders", "posts"])
def test_a_repeat_is_no_further_command_and_a_replay_is_the_operators(bounded: Database, topic: str) -> None:
    once = "SELECT inturn.append(%s, 'x', 'insert', '{}', 'once')"
    bounded.execute(once, [topic])
    number(bounded)
    bounded.execute("CALL inturn.apply()")
    _fill(bounded, topic)
    assert bounded.value(once, [topic]) == 1
    bounded.execute("SELECT inturn.replay(%s, 'x', 1, 'because')", [topic])
    assert bounded.value("SELECT count(*) FROM inturn.command_log WHERE topic = %s", [topic]) == 5


def test_without_the_look_at_where_the_key_stands_nothing_would_be_refused(bounded: Database) -> None:
    replace_in(bounded, "_refuse_pending", ("last_seq > applied", "false AND last_seq > applied"))
    for topic in ("orders", "posts"):
        _fill(bounded, topic, 5)


def test_it_is_set_shown_and_taken_away_at_the_command_line(database: Database) -> None:
    assert run_inturn(database.dsn, "topic", "create", "orders", "--max-pending", "2")[0] == 0
    assert "max-pending" in run_inturn(database.dsn, "topic", "show", "orders")[1]
    database.execute("SELECT inturn.append_many('orders', '{x,x}', '{a,b}')")
    code, _, err = run_inturn(database.dsn, "append", "orders", "x", "c")
    assert (code != 0, "has 2 commands pending" in err) == (True, True)
    assert run_inturn(database.dsn, "topic", "set", "orders", "--max-pending", "0")[0] == 0
    assert run_inturn(database.dsn, "append", "orders", "x", "c")[0] == 0
    assert "no limit" in run_inturn(database.dsn, "topic", "show", "orders")[1]


@pytest.mark.parametrize("setting", ["max_pending => 0", "max_pending => 1000000001", "max_pending => -1"])
def test_what_cannot_be_a_bound_is_refused(database: Database, setting: str) -> None:
    assert refusal(database, f"SELECT inturn.create_topic('t', {setting})").sqlstate == "IT011"


def test_where_callers_number_max_ahead_is_the_bound(database: Database) -> None:
    query = "SELECT inturn.create_topic('t', numbering => 'given', max_pending => 5)"
    said = refusal(database, query)
    assert (said.sqlstate, "max_ahead" in said.message) == ("IT011", True)
