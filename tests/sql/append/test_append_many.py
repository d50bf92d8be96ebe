"""append_many: order, parallel arrays, one round trip, no deadlock among its own kind."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from support.database import Database
from support.refusal import refusal

MANY = "SELECT inturn.append_many('orders', %s::text[], %s::text[], %s::jsonb[], %s::text[])"


@pytest.fixture
def orders(database: Database) -> Database:
    """The database with topic `orders`."""
    database.execute("SELECT inturn.create_topic('orders', max_payload_bytes => 2000)")
    return database


def log(database: Database) -> list[tuple[Any, ...]]:
    return database.execute("SELECT key, seq, name FROM inturn.command_log ORDER BY key, seq")


def test_commands_of_a_key_keep_their_order_and_seqs_come_in_the_order_given(
    orders: Database,
) -> None:
    keys, names = list("bacabbca"), list("12345678")
    assert orders.value(MANY, [keys, names, None, None]) == [1, 1, 1, 2, 2, 3, 2, 3]
    assert log(orders) == [
        *(("a", 1, "2"), ("a", 2, "4"), ("a", 3, "8")),
        *(("b", 1, "1"), ("b", 2, "5"), ("b", 3, "6")),
        *(("c", 1, "3"), ("c", 2, "7")),
    ]


def test_a_thousand_commands_of_one_key_in_their_order(orders: Database) -> None:
    names = [str(n) for n in range(1000)]
    assert orders.value(MANY, [["a"] * 1000, names, None, None]) == list(range(1, 1001))
    assert [name for _, _, name in log(orders)] == names


def test_it_goes_on_from_what_is_there(orders: Database) -> None:
    orders.execute("SELECT inturn.append('orders', 'a', 'x')")
    assert orders.value(MANY, [["b", "a"], ["y", "z"], None, None]) == [1, 2]


def test_payloads_and_idempotency_keys_run_in_parallel_and_may_be_null(orders: Database) -> None:
    given = [["b", "a", "a"], ["x", "y", "z"], ["1", None, "[3]"], [None, "p", None]]
    assert orders.value(MANY, given) == [1, 1, 2]
    stored = "SELECT key, seq, payload, idempotency_key FROM inturn.command_log ORDER BY key, seq"
    assert orders.execute(stored) == [("a", 1, {}, "p"), ("a", 2, [3], None), ("b", 1, 1, None)]


@pytest.mark.parametrize("idempotency_keys", [None, []])
@pytest.mark.parametrize("payloads", [None, []])
def test_nothing_to_append_is_nothing(
    orders: Database, payloads: list[str] | None, idempotency_keys: list[str] | None
) -> None:
    assert orders.value(MANY, [[], [], payloads, idempotency_keys]) == []
    assert log(orders) == []


@pytest.mark.parametrize(
    ("arrays", "counts"),
    [
        ([["a", "b"], ["x"], None, None], "2 keys, 1 names, NULL payloads and NULL idempotency"),
        ([["a"], ["x"], [], None], "1 keys, 1 names, 0 payloads and NULL idempotency"),
        ([["a"], ["x"], None, ["p", "q"]], "1 keys, 1 names, NULL payloads and 2 idempotency"),
        ([[], [], ["{}"], None], "0 keys, 0 names, 1 payloads and NULL idempotency"),
        ([None, ["x"], None, None], "NULL keys, 1 names"),
        ([["a"], None, None, None], "1 keys, NULL names"),
    ],
    ids=str,
)
def test_arrays_of_different_lengths_are_refused_with_their_lengths(
    orders: Database, arrays: list[Any], counts: str
) -> None:
    said = refusal(orders, MANY, arrays)
    assert said.sqlstate == "IT006"
    assert counts in said.message
    assert "arrays of one length" in said.hint
    assert log(orders) == []


def test_no_arrays_at_all_append_nothing(orders: Database) -> None:
    assert orders.value("SELECT inturn.append_many('orders', NULL, NULL)") == []
    assert log(orders) == []


@pytest.mark.parametrize(
    ("arrays", "sqlstate", "says"),
    [
        ([["a", None], ["x", "y"], None, None], "IT002", "key is NULL"),
        ([["a", ""], ["x", "y"], None, None], "IT002", "key is empty"),
        ([["a", "b"], ["x", None], None, None], "IT004", "for key 'b' is NULL"),
        ([["b", "a"], ["x", "y" * 129], None, None], "IT004", "key 'a' is 129 octets"),
        ([["a", "b"], ["x", "y"], ["1", f'"{"z" * 1999}"'], None], "IT003", "'y' for key 'b'"),
        ([["a", "b"], ["x", "y"], None, [None, ""]], "IT005", "'y' for key 'b' is 0 octets"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_one_bad_command_is_named_and_none_is_appended(
    orders: Database, arrays: list[Any], sqlstate: str, says: str
) -> None:
    said = refusal(orders, MANY, arrays)
    assert said.sqlstate == sqlstate
    assert says in said.message
    assert log(orders) == []
    assert orders.execute("SELECT key FROM inturn.key_sequence") == []


def test_an_unknown_topic_is_refused(orders: Database) -> None:
    said = refusal(orders, "SELECT inturn.append_many('nowhere', '{a}', '{x}')")
    assert (said.sqlstate, said.message) == ("IT001", "topic 'nowhere' does not exist")


def test_an_idempotency_key_twice_in_one_call_appends_once(orders: Database) -> None:
    given = [["a", "b", "a", "a"], ["x", "x", "x", "y"], None, ["p", "p", "p", "q"]]
    assert orders.value(MANY, given) == [1, 1, 1, 2]
    assert orders.value(MANY, given) == [1, 1, 1, 2]
    assert log(orders) == [("a", 1, "x"), ("a", 2, "y"), ("b", 1, "x")]


def test_two_calls_in_opposite_orders_wait_and_never_deadlock(orders: Database) -> None:
    gate, first, second = orders.session(), orders.session(), orders.session()
    keys = [f"k{n:02}" for n in range(20)]
    # Both start while the key in the middle is taken, so each holds what it took before it.
    gate.execute("SELECT inturn.append('orders', 'k10', 'gate')")
    one = first.begin(MANY, [keys, ["1"] * 20, None, None])
    assert first.wait_blocked() == [gate.pid]
    other = second.begin(MANY, [keys[::-1], ["2"] * 20, None, None])
    assert second.wait_blocked() == [first.pid]
    gate.rollback()
    assert one.result() == [([1] * 20,)]
    first.commit()
    assert other.result() == [([2] * 20,)]
    second.commit()
    assert log(orders) == [(key, seq, str(seq)) for key in keys for seq in (1, 2)]


def test_keys_are_locked_in_the_order_of_their_octets_whatever_the_session_says(
    orders: Database,
) -> None:
    # Z, a, É, é by octets; a language would have a before Z.
    gate, caller = orders.session(), orders.session()
    gate.execute("SELECT inturn.append('orders', 'a', 'gate')")
    caller.begin(MANY, [["é", "a", "É", "Z"], list("1234"), None, None])
    caller.wait_blocked()
    taken = [
        key
        for key in ("Z", "É", "é")
        if refused_by_timeout(orders, f"SELECT inturn.append('orders', '{key}', 'x')")
    ]
    assert taken == ["Z"]
    gate.rollback()


def refused_by_timeout(database: Database, query: str) -> bool:
    """Whether the statement would wait for a lock; it is rolled back if not."""
    session = database.session()
    session.execute("SET lock_timeout = '50ms'")
    try:
        session.execute(query)
    except psycopg.errors.LockNotAvailable:
        return True
    finally:
        session.rollback()
    return False


def test_arrays_of_any_bounds_and_dimensions_are_read_in_their_order(orders: Database) -> None:
    query = "SELECT inturn.append_many('orders', '[5:6]={a,b}'::text[], '{{x},{y}}'::text[])"
    assert orders.value(query) == [1, 1]
    assert log(orders) == [("a", 1, "x"), ("b", 1, "y")]
