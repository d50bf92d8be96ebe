"""What would be appended as something else than was meant, or not at all, is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.database import Database
from support.refusal import refusal
from support.roles import CALLER, OWNER

from inturn.outbox import NewCommand, append, append_many
from inturn.schema.errors import PayloadRefused

_TWICE = [
    '{"a": 1}',
    "{}",
    ' \n\t{"a": "\\u00fc"}',
    '{"long": "' + "x" * 3000 + '"}',
    "[]",
    "[1]",
    ' [{"a": 1}, 2]',
]
#: To append a payload, to topics of every numbering.
_WAYS = (
    "SELECT inturn.append('orders', 'new', 'x', %s::jsonb)",
    "SELECT inturn.append('orders', 'known', 'x', %s::jsonb)",
    "SELECT inturn.append('given', 'new', 'x', %s::jsonb, seq => 1)",
    "SELECT inturn.append('arrival', 'new', 'x', %s::jsonb)",
    "SELECT inturn.append_many('orders', '{new}', '{x}', ARRAY[%s::jsonb])",
    "INSERT INTO inturn.outbox (topic, key, name, payload) VALUES ('orders', 'new', 'x', %s::jsonb)",
)
_ONCE = [
    "",
    "text",
    "{",
    "[draft] see {}",
    "{not json}",
    "[1, 2",
    "1",
    "null",
    "true",
    '"quoted"',
    "[1] see above",
    '{"a": ' * 10_000,
]


@pytest.fixture
def orders(database: Database) -> Database:
    database.execute(
        "SELECT inturn.create_topic('orders'), inturn.create_topic('given', numbering => 'given'),"
        " inturn.create_topic('arrival', numbering => 'arrival')"
    )
    return database


def test_an_object_or_array_that_was_encoded_twice_is_refused_by_every_way_to_append(
    orders: Database,
) -> None:
    caller = orders.connect(user=CALLER)
    append(caller, "orders", "known", "x")
    for text in _TWICE:
        for statement in _WAYS:
            said = refusal(caller, statement, [json.dumps(text)])
            assert said.sqlstate == "IT003", (statement, text)
            assert "encoded twice" in said.message
            assert "json.dumps" in said.hint
            assert "json_strings" in said.hint
        with pytest.raises(PayloadRefused, match="encoded twice"):
            append(caller, "orders", "known", "x", text)
        with pytest.raises(PayloadRefused, match="encoded twice"):
            append_many(caller, "orders", [NewCommand("known", "x", text)])
    assert orders.value("SELECT count(*) FROM inturn.command_log") == 1


def test_a_topic_may_allow_strings_that_hold_json(orders: Database) -> None:
    """By every way to append, numbered at once or on arrival; until it does not any more."""
    orders.execute("SELECT inturn.set_topic(name, json_strings => true) FROM inturn.topic")
    caller, text = orders.connect(user=CALLER), _TWICE[0]
    append(caller, "orders", "known", "x")
    for statement in _WAYS:
        caller.execute(statement, [json.dumps(text)])
    append(caller, "orders", "known", "x", text)
    append_many(caller, "orders", [NewCommand("known", "x", text)])
    orders.execute(
        "SELECT inturn.amend('orders', 'known', 1, 'a test', payload => %s::jsonb)", [json.dumps(text)]
    )
    orders.execute("SELECT inturn._number_topic('arrival', 100)")
    stored = orders.execute("SELECT payload, count(*) FROM inturn.command_log GROUP BY payload")
    assert stored == [(text, 1 + len(_WAYS) + 2)]

    orders.execute("SELECT inturn.set_topic('orders', json_strings => false)")
    with pytest.raises(PayloadRefused, match="encoded twice"):
        append(caller, "orders", "known", "x", text)


def test_any_other_string_is_a_payload(orders: Database) -> None:
    caller = orders.connect(user=CALLER)
    for text in _ONCE:
        append(caller, "orders", "a", "x", text)
    stored = orders.execute("SELECT payload FROM inturn.command_log ORDER BY seq")
    assert stored == [(text,) for text in _ONCE]


def test_no_other_payload_is_looked_into(orders: Database) -> None:
    caller = orders.connect(user=CALLER)
    payloads: list[Any] = [None, 0, True, [], ["{}"], {"text": '{"a": 1}'}]
    for payload in payloads:
        append(caller, "orders", "a", "x", payload)
    stored = orders.execute("SELECT payload FROM inturn.command_log ORDER BY seq")
    assert stored == [({} if payload is None else payload,) for payload in payloads]


def test_an_amendment_is_refused_as_an_append_is(orders: Database) -> None:
    append(orders.connect(user=CALLER), "orders", "a", "x")
    statement = "SELECT inturn.amend('orders', 'a', 1, 'a test', payload => %s::jsonb)"
    assert refusal(orders, statement, [json.dumps("{}")]).sqlstate == "IT003"


# Where the trigger of the view does not fire.

_INSERTS = {
    "values": "INSERT INTO inturn.outbox (topic, key, name) VALUES ('orders', 'a', 'x')",
    "given": "INSERT INTO inturn.outbox (topic, key, name, seq) VALUES ('given', 'a', 'x', 1)",
    "all columns": "INSERT INTO inturn.outbox VALUES ('orders', 'a', 'x', '{}', NULL, NULL)",
    "no topic": "INSERT INTO inturn.outbox (key, name) VALUES ('a', 'x')",
    "select": "INSERT INTO inturn.outbox (topic, key, name) SELECT name, 'a', 'x' FROM inturn.topic",
    "returning": "INSERT INTO inturn.outbox (topic, key, name) VALUES ('orders', 'a', 'x') RETURNING seq",
}


def test_the_view_refuses_what_its_trigger_would_not_see(orders: Database) -> None:
    connection = orders.connect(user=OWNER)
    connection.execute("SET session_replication_role = replica")
    for what, insert in _INSERTS.items():
        said = refusal(connection, insert)
        assert said.sqlstate == "23514", what
        assert "nothing_is_appended_while_session_replication_role_is_replica" in said.message, what


@pytest.mark.parametrize("prepare", [True, False])
def test_the_view_refuses_prepared_inserts_and_copy_too(orders: Database, prepare: bool) -> None:
    connection = orders.connect(user=OWNER)
    insert = "INSERT INTO inturn.outbox (topic, key, name) VALUES (%s, %s, %s) RETURNING topic, seq"
    taken = connection.execute(insert, ["orders", "a", "x"], prepare=prepare)
    assert taken.fetchall() == [("orders", 1)]
    assert taken.description is not None
    assert taken.description[0].type_display == "text", "a client sees no domain"
    connection.execute("SET session_replication_role = replica")
    assert refusal(connection, insert, ["orders", "a", "x"]).sqlstate == "23514"
    with pytest.raises(Exception, match="session_replication_role_is_replica"):  # noqa: SIM117
        with connection.cursor().copy("COPY inturn.outbox (topic, key, name) FROM STDIN") as copy:
            copy.write_row(("orders", "a", "x"))
    assert connection.execute("SELECT inturn.append('orders', 'a', 'x')").fetchall() == [(2,)], "no trigger"
    connection.execute("RESET session_replication_role")
    assert connection.execute(insert, ["orders", "a", "x"], prepare=prepare).fetchall() == [("orders", 3)]
