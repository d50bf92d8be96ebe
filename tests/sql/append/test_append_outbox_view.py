"""INSERT and COPY into the view outbox: each row as append does it."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from support.database import Database
from support.refusal import refusal
from support.roles import CALLER, OWNER


@pytest.fixture
def orders(database: Database) -> Database:
    """The database with topic `orders`."""
    database.execute("SELECT inturn.create_topic('orders', max_payload_bytes => 2000)")
    return database


def log(database: Database) -> list[tuple[Any, ...]]:
    return database.execute(
        "SELECT key, seq, name, payload, idempotency_key FROM inturn.command_log ORDER BY key, seq"
    )


def test_insert_returns_the_whole_row_with_its_seq(orders: Database) -> None:
    insert = """INSERT INTO inturn.outbox (topic, key, name, payload, idempotency_key)
        VALUES ('orders', 'a', 'insert', '{"n": 1}', 'once') RETURNING *"""
    row = ("orders", "a", "insert", {"n": 1}, "once", 1)
    assert orders.execute(insert) == [row]
    assert orders.execute(insert) == [row]  # once
    assert log(orders) == [("a", 1, "insert", {"n": 1}, "once")]


def test_many_rows_of_one_insert_are_appended_in_their_order(orders: Database) -> None:
    insert = """INSERT INTO inturn.outbox (topic, key, name) VALUES
        ('orders', 'b', '1'), ('orders', 'a', '2'), ('orders', 'b', '3') RETURNING key, seq"""
    assert orders.execute(insert) == [("b", 1), ("a", 1), ("b", 2)]
    assert [row[:3] for row in log(orders)] == [("a", 1, "2"), ("b", 1, "1"), ("b", 2, "3")]


def test_what_is_left_out_is_an_empty_object_and_no_idempotency_key(orders: Database) -> None:
    orders.execute("INSERT INTO inturn.outbox (topic, key, name) VALUES ('orders', 'a', 'x')")
    orders.execute("INSERT INTO inturn.outbox VALUES ('orders', 'a', 'y', NULL, NULL, NULL)")
    orders.execute(
        "INSERT INTO inturn.outbox (topic, key, name, payload, seq)"
        " VALUES ('orders', 'a', 'z', DEFAULT, DEFAULT)"
    )
    assert log(orders) == [("a", n, name, {}, None) for n, name in ((1, "x"), (2, "y"), (3, "z"))]


def test_insert_from_a_query(orders: Database) -> None:
    orders.execute("""INSERT INTO inturn.outbox (topic, key, name, payload)
        SELECT 'orders', 'k' || n % 2, 'n', to_jsonb(n) FROM generate_series(1, 6) n ORDER BY n""")
    rows = [(key, seq, payload) for key, seq, _, payload, _ in log(orders)]
    assert rows == [("k0", 1, 2), ("k0", 2, 4), ("k0", 3, 6), ("k1", 1, 1), ("k1", 2, 3), ("k1", 3, 5)]


@pytest.mark.parametrize("format_", ["text", "csv", "binary"])
def test_copy_appends_line_by_line(orders: Database, format_: str) -> None:
    rows = [("orders", f"k{n % 3}", f"n{n}", f"[{n}]") for n in range(9)]
    with orders.connect(user=CALLER).cursor() as cursor:
        copy_in = f"COPY inturn.outbox (topic, key, name, payload) FROM STDIN (FORMAT {format_})"
        with cursor.copy(copy_in) as copy:
            if format_ == "csv":
                copy.write("".join(f"{t},{k},{n},{p}\n" for t, k, n, p in rows))
            else:
                copy.set_types(["text", "text", "text", "jsonb"])
                for topic, key, name, payload in rows:
                    copy.write_row((topic, key, name, Jsonb(json.loads(payload))))
    stored = [(key, seq, name) for key, seq, name, _, _ in log(orders)]
    assert stored == [(f"k{k}", i + 1, f"n{3 * i + k}") for k in range(3) for i in range(3)]


def test_copy_with_one_bad_line_appends_nothing_and_names_it(orders: Database) -> None:
    cursor = orders.connect(user=CALLER).cursor()
    copying = cursor.copy("COPY inturn.outbox (topic, key, name) FROM STDIN")
    with pytest.raises(psycopg.Error, match="key is empty") as raised, copying as copy:
        copy.write("orders\ta\tx\norders\t\ty\n")
    assert raised.value.diag.sqlstate == "IT002"
    assert log(orders) == []


def test_a_seq_of_ones_own_is_refused(orders: Database) -> None:
    said = refusal(
        orders,
        "INSERT INTO inturn.outbox (topic, key, name, seq) VALUES ('orders', 'a', 'x', 7)",
    )
    assert said.sqlstate == "IT007"
    assert said.message == "seq 7 was given for key 'a', and topic 'orders' numbers its commands itself"
    assert "RETURNING seq" in said.hint
    assert log(orders) == []


@pytest.mark.parametrize(
    ("values", "sqlstate"),
    [
        ("('nowhere', 'a', 'x', '{}', NULL)", "IT001"),
        ("(NULL, 'a', 'x', '{}', NULL)", "IT001"),
        ("('orders', NULL, 'x', '{}', NULL)", "IT002"),
        ("('orders', repeat('x', 513), 'x', '{}', NULL)", "IT002"),
        ("('orders', 'a', 'x', to_jsonb(repeat('x', 1999)), NULL)", "IT003"),
        ("('orders', 'a', NULL, '{}', NULL)", "IT004"),
        ("('orders', 'a', 'x', '{}', '')", "IT005"),
    ],
)
def test_a_bad_row_is_refused_as_append_refuses_it_and_takes_the_others_with_it(
    orders: Database, values: str, sqlstate: str
) -> None:
    insert = f"""INSERT INTO inturn.outbox (topic, key, name, payload, idempotency_key)
        VALUES ('orders', 'good', 'x', '{{}}', NULL), {values}"""
    assert refusal(orders, insert).sqlstate == sqlstate
    assert log(orders) == []
    assert orders.execute("SELECT key FROM inturn.key_sequence") == []


def test_it_reads_as_empty(orders: Database) -> None:
    orders.execute("SELECT inturn.append('orders', 'a', 'x')")
    assert orders.execute("SELECT * FROM inturn.outbox") == []
    assert orders.value("SELECT count(*) FROM inturn.outbox") == 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE inturn.outbox SET name = 'y'",
        "DELETE FROM inturn.outbox",
        "INSERT INTO inturn.outbox (topic) VALUES ('x') ON CONFLICT (key) DO UPDATE SET name = 'y'",
    ],
)
def test_what_was_appended_cannot_be_changed_through_it(orders: Database, statement: str) -> None:
    orders.execute("SELECT inturn.append('orders', 'a', 'x')")
    assert refusal(orders.connect(user=OWNER), statement).sqlstate in {"55000", "0A000", "42P10"}
    assert [row[:3] for row in log(orders)] == [("a", 1, "x")]
