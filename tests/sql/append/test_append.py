"""append by SQL: what it returns, what it refuses by name, and that keys are octets."""

from __future__ import annotations

import json
import unicodedata
from itertools import product
from typing import Any

import psycopg
import pytest
from support.database import Database
from support.refusal import refusal
from support.roles import CALLER

APPEND = "SELECT inturn.append(%s, %s, %s, %s::jsonb, %s)"
LEVELS = list(psycopg.IsolationLevel)


@pytest.fixture
def orders(database: Database) -> Database:
    """The database with topic `orders`, and `small`, whose payloads are at most 2000 bytes."""
    database.execute("SELECT inturn.create_topic('orders')")
    database.execute("SELECT inturn.create_topic('small', max_payload_bytes => 2000)")
    return database


def left_behind(database: Database) -> list[tuple[Any, ...]]:
    """What there is of commands and keys."""
    return database.execute("""
        SELECT topic, key FROM inturn.command_log
        UNION ALL SELECT topic, key FROM inturn.key_sequence
        UNION ALL SELECT topic, key FROM inturn.key_cursor
    """)


def log(database: Database) -> list[tuple[Any, ...]]:
    return database.execute("SELECT key, seq, name, payload FROM inturn.command_log ORDER BY topic, key, seq")


# What it returns and stores.


def test_seq_counts_from_one_in_every_key_of_every_topic(orders: Database) -> None:
    def append(topic: str, key: str) -> int:
        return int(orders.value("SELECT inturn.append(%s, %s, 'insert')", [topic, key]))

    places = [("orders", "a"), ("orders", "b"), ("orders", "a"), ("small", "a"), ("orders", "a")]
    assert [append(*place) for place in places] == [1, 1, 2, 1, 3]


def test_what_was_given_is_what_is_stored(orders: Database) -> None:
    payload = {"b": [1, 2.50, None, True], "a": {"ü": "\u2028"}}
    orders.value(APPEND, ["orders", "a", "insert", json.dumps(payload), "first"])
    stored = orders.execute(
        "SELECT topic, key, seq, name, payload, idempotency_key,"
        " created_at <= clock_timestamp() FROM inturn.command_log"
    )
    assert stored == [("orders", "a", 1, "insert", payload, "first", True)]


def test_without_a_payload_it_is_an_empty_object(orders: Database) -> None:
    for seq, call in enumerate(
        (
            "SELECT inturn.append('orders', 'a', 'insert')",
            "SELECT inturn.append('orders', 'a', 'insert', NULL)",
            "SELECT inturn.append('orders', 'a', 'insert', NULL, NULL)",
            "SELECT inturn.append(topic => 'orders', key => 'a', name => 'insert')",
            "SELECT inturn.append('orders', 'a', 'insert', idempotency_key => 'once')",
        ),
        1,
    ):
        assert orders.value(call) == seq, call
    assert log(orders) == [("a", seq, "insert", {}) for seq in range(1, 6)]


def test_any_json_value_is_a_payload(orders: Database) -> None:
    payloads = ("null", "[]", "0", '""', "false")
    for payload in payloads:
        orders.value(APPEND, ["orders", "a", "insert", payload, None])
    assert log(orders) == [("a", n, "insert", json.loads(text)) for n, text in enumerate(payloads, 1)]


# What it refuses.


#: arguments, SQLSTATE, a part of the message, a part of the hint
REFUSED: list[tuple[tuple[str | None, ...], str, str, str]] = [
    (("nowhere", "a", "n", "{}", None), "IT001", "topic 'nowhere' does not exist", "create"),
    (("Orders", "a", "n", "{}", None), "IT001", "topic 'Orders' does not exist", "create"),
    (("orders ", "a", "n", "{}", None), "IT001", "topic 'orders ' does not exist", "create"),
    (("", "a", "n", "{}", None), "IT001", "topic '' does not exist", "create_topic"),
    ((None, "a", "n", "{}", None), "IT001", "topic NULL does not exist", "create_topic"),
    (("it's", "a", "n", "{}", None), "IT001", "topic 'it''s' does", "create_topic('it''s')"),
    (("x" * 9000, "a", "n", "{}", None), "IT001", f"'{'x' * 200}'", "create_topic"),
    (("orders", None, "n", "{}", None), "IT002", "key is NULL", "1 to 512 octets"),
    (("orders", "", "n", "{}", None), "IT002", "key is empty", "1 to 512 octets"),
    (("orders", "x" * 513, "n", "{}", None), "IT002", "key is 513 octets", "1 to 512"),
    (("orders", "ü" * 257, "n", "{}", None), "IT002", "514 octets", "1 to 512"),
    (("orders", "x" * 99_999, "n", "{}", None), "IT002", "99999 octets", "1 to 512"),
    (("orders", "a", None, "{}", None), "IT004", "for key 'a' is NULL", "1 to 128"),
    (("orders", "a", "", "{}", None), "IT004", "for key 'a' is empty", "1 to 128"),
    (("orders", "a", "x" * 129, "{}", None), "IT004", "key 'a' is 129 octets", "1 to 128"),
    (("orders", "a", "ü" * 65, "{}", None), "IT004", "key 'a' is 130 octets", "1 to 128"),
    (("orders", "a", "n", "{}", ""), "IT005", "'n' for key 'a' is 0 octets", "NULL or 1 to"),
    (("orders", "a", "n", "{}", "x" * 513), "IT005", "'a' is 513 octets", "NULL or 1 to 512"),
    (
        ("small", "a", "n", f'"{"x" * 1999}"', None),
        "IT003",
        "payload of command 'n' for key 'a' is 2001 bytes, over the 2000 that topic 'small'",
        "max_payload_bytes",
    ),
]


def test_what_is_refused_is_named_with_a_remedy_and_leaves_nothing(orders: Database) -> None:
    connection = orders.connect(user=CALLER)
    for arguments, sqlstate, says, hints in REFUSED:
        said = refusal(connection, APPEND, arguments)
        assert said.sqlstate == sqlstate, said
        assert says in said.message, said
        assert hints in said.hint, said
        assert len(said.message) < 400
    assert left_behind(orders) == []


def test_a_refusal_leaves_the_transaction_to_its_savepoint(orders: Database) -> None:
    caller = orders.session()
    assert caller.execute("SELECT inturn.append('orders', 'a', 'insert')") == [(1,)]
    caller.execute("SAVEPOINT before")
    assert refusal(caller.connection, APPEND, ["orders", "", "x", "{}", None]).sqlstate == "IT002"
    caller.execute("ROLLBACK TO before")
    assert caller.execute("SELECT inturn.append('orders', 'a', 'delete')") == [(2,)]
    caller.commit()
    assert [row[:3] for row in log(orders)] == [("a", 1, "insert"), ("a", 2, "delete")]


def test_the_payloads_limit_is_in_octets_of_its_text(orders: Database) -> None:
    octets, caller = "SELECT octet_length(%s::jsonb::text)", orders.connect(user=CALLER)
    for seq, payload in enumerate(
        (
            '"@"',
            '"ü@"',
            '"😀@"',
            '{"a":1,"b":"@"}',  # the text that PostgreSQL makes of it has its blanks
            '{"a":                 "@"}',
            r'"\u00fc@"',
            r'"\n\"@"',
            '["@", 1e30]',
        ),
        1,
    ):
        pad = "x" * (2000 - orders.value(octets, [payload]) + 1)
        allowed, too_long = payload.replace("@", pad), payload.replace("@", pad + "x")
        assert [orders.value(octets, [text]) for text in (allowed, too_long)] == [2000, 2001]
        assert orders.value(APPEND, ["small", "a", "n", allowed, None]) == seq, payload
        for key in ("a", "new"):  # a key with commands, and one without
            said = refusal(caller, APPEND, ["small", key, "n", too_long, None])
            assert said.sqlstate == "IT003", payload
            assert f"for key '{key}' is 2001 bytes, over the 2000" in said.message
    assert len(log(orders)) == 8


def test_a_bad_key_is_refused_by_a_topic_that_has_keys(orders: Database) -> None:
    orders.value(APPEND, ["orders", "a", "n", "{}", None])
    caller = orders.connect(user=CALLER)
    for key, idempotency_key in product((None, "", "x" * 513), (None, "once")):
        said = refusal(caller, APPEND, ["orders", key, "n", "{}", idempotency_key])
        assert said.sqlstate == "IT002", (key, idempotency_key)


#: What is refused, and the SQLSTATE.
REFUSED_OF_A_KEY: list[tuple[tuple[str | None, ...], str]] = [
    (("orders", "a", None, "{}", None), "IT004"),
    (("orders", "a", "", "{}", None), "IT004"),
    (("orders", "a", "x" * 129, "{}", None), "IT004"),
    (("orders", "a", "n", "{}", ""), "IT005"),
    (("orders", "a", "n", "{}", "x" * 513), "IT005"),
    (("orders", "a", "", "{}", "first"), "IT004"),
    (("nowhere", "a", "n", "{}", None), "IT001"),
]


def test_a_key_that_has_commands_refuses_the_same(orders: Database) -> None:
    orders.value(APPEND, ["orders", "a", "n", "{}", "first"])
    caller = orders.connect(user=CALLER)
    for arguments, sqlstate in REFUSED_OF_A_KEY:
        assert refusal(caller, APPEND, arguments).sqlstate == sqlstate, arguments
    assert len(log(orders)) == 1


def test_the_default_limit_is_a_mebibyte_to_the_octet(orders: Database) -> None:
    payload = f'"{"x" * (1_048_576 - 2)}"'
    assert orders.value(APPEND, ["orders", "a", "n", payload, None]) == 1
    said = refusal(orders, APPEND, ["orders", "a", "n", payload[:-1] + 'x"', None])
    assert said.sqlstate == "IT003"
    assert "1048577 bytes, over the 1048576" in said.message


def test_a_number_counts_with_the_digits_it_stands_for(orders: Database) -> None:
    assert orders.value(APPEND, ["small", "a", "n", "1e1999", None]) == 1
    for payload, octets in (("1e2000", 2001), ("[1e100000]", 100_003)):
        said = refusal(orders, APPEND, ["small", "a", "n", payload, None])
        assert said.sqlstate == "IT003"
        assert f"is {octets} bytes" in said.message
    assert orders.value(APPEND, ["orders", "a", "n", "1e100000", None]) == 1


# Keys are octets.

_HOSTILE = [
    "x" * 512,
    "ü" * 256,
    "😀" * 128,
    unicodedata.normalize("NFC", "Å"),
    unicodedata.normalize("NFD", "Å"),
    "a",
    "A",
    "a ",
    " a",
    "a\t",
    "a\n",
    "a\r\n",
    "ß",
    "ss",
    "'",
    "''",
    '"',
    "%",
    "%s",
    "_",
    "\\",
    "\\x00",
    "\x1b[31m",
    "\x01",
    "\x7f",
    "\u202e",
    "\ufeff",
    "{a,b}",
    "(a,b)",
    "NULL",
    "; DROP SCHEMA inturn; --",
    "$1",
]


def test_keys_that_differ_in_an_octet_are_different_keys(orders: Database) -> None:
    for door in (
        "SELECT inturn.append('orders', %s, 'n')",
        "SELECT (inturn.append_many('orders', ARRAY[%s], '{n}'))[1]",
        "INSERT INTO inturn.outbox (topic, key, name) VALUES ('orders', %s, 'n') RETURNING seq",
    ):
        before = orders.value("SELECT coalesce(max(seq), 0) FROM inturn.command_log")
        seqs = [orders.value(door, [key]) for key in _HOSTILE]
        assert seqs == [before + 1] * len(_HOSTILE)
    for table in ("key_sequence", "key_cursor"):
        keys = orders.execute(f"SELECT key FROM inturn.{table}")
        assert sorted(key for (key,) in keys) == sorted(_HOSTILE)
    rows = orders.execute("SELECT key, count(*) FROM inturn.command_log GROUP BY key")
    assert sorted(rows) == sorted((key, 3) for key in _HOSTILE)


def test_hostile_names_and_idempotency_keys_are_stored_as_they_are(orders: Database) -> None:
    for text in _HOSTILE:
        name = text[:32]
        assert orders.value(APPEND, ["orders", text, name, "{}", text]) == 1
        assert orders.value(APPEND, ["orders", text, name, "{}", text]) == 1
        assert orders.execute(
            "SELECT name, idempotency_key FROM inturn.command_log WHERE key = %s", [text]
        ) == [(name, text)]


def test_a_refusal_quotes_hostile_text_in_its_message(orders: Database) -> None:
    key = "'; DROP SCHEMA inturn; -- %s %I\n" + "x" * 600
    said = refusal(orders, APPEND, ["orders", key, "n", "{}", None])
    assert "'''; DROP SCHEMA inturn" in said.message
    said = refusal(orders, APPEND, ["%s'%", "a", "n", "{}", None])
    assert "topic '%s''%' does not exist" in said.message


# The same idempotency key.


def test_the_same_idempotency_key_gives_the_first_seq_and_appends_nothing(orders: Database) -> None:
    assert orders.value(APPEND, ["orders", "a", "insert", '{"n": 1}', "once"]) == 1
    assert orders.value(APPEND, ["orders", "a", "delete", "{}", None]) == 2
    assert orders.value(APPEND, ["orders", "a", "insert", '{"n": 1}', "once"]) == 1
    assert orders.value(APPEND, ["orders", "b", "insert", "{}", "once"]) == 1  # another key's own
    assert orders.value(APPEND, ["orders", "a", "update", "{}", "twice"]) == 3
    assert len(log(orders)) == 4


def test_two_in_flight_with_the_same_idempotency_key_become_one(orders: Database) -> None:
    first, second = orders.session(), orders.session()
    first.execute(APPEND, ["orders", "a", "insert", "{}", "once"])
    retry = second.begin(APPEND, ["orders", "a", "insert", "{}", "once"])
    assert second.wait_blocked() == [first.pid]
    first.commit()
    assert retry.result() == [(1,)]
    second.commit()
    assert len(log(orders)) == 1


def test_an_idempotency_key_that_was_rolled_back_is_free(orders: Database) -> None:
    first, second = orders.session(), orders.session()
    first.execute(APPEND, ["orders", "a", "insert", '{"by": 1}', "once"])
    retry = second.begin(APPEND, ["orders", "a", "insert", '{"by": 2}', "once"])
    second.wait_blocked()
    first.rollback()
    assert retry.result() == [(1,)]
    second.commit()
    assert log(orders) == [("a", 1, "insert", {"by": 2})]


@pytest.mark.parametrize("level", LEVELS)
def test_the_same_idempotency_key_behind_an_older_snapshot_is_a_retry_not_a_duplicate(
    orders: Database, level: psycopg.IsolationLevel
) -> None:
    caller = orders.session(user=CALLER)
    caller.connection.isolation_level = level
    caller.execute("SELECT FROM inturn.schema_version")  # takes the snapshot
    assert orders.value(APPEND, ["orders", "a", "insert", "{}", "once"]) == 1
    again = (APPEND, ["orders", "a", "insert", "{}", "once"])
    if level.value > psycopg.IsolationLevel.READ_COMMITTED.value:
        assert refusal(caller.connection, *again).sqlstate == "40001"
        caller.rollback()
    assert caller.execute(*again) == [(1,)]
    caller.commit()
    assert len(log(orders)) == 1


# The caller's transaction.


@pytest.mark.parametrize("level", LEVELS)
def test_it_works_at_every_isolation_level(orders: Database, level: psycopg.IsolationLevel) -> None:
    for _ in range(2):
        caller = orders.session(user=CALLER)
        caller.connection.isolation_level = level
        first = caller.execute("SELECT inturn.append('orders', 'a', 'insert')")[0][0]
        assert caller.execute("SELECT inturn.append('orders', 'a', 'update')") == [(first + 1,)]
        assert caller.execute("SELECT inturn.append_many('orders', '{a,b}', '{x,y}')") == [
            ([first + 2, (first + 2) // 3],)
        ]
        caller.commit()
    assert [seq for key, seq, *_ in log(orders) if key == "a"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("existing", [False, True], ids=["new-key", "known-key"])
def test_an_older_snapshot_gets_the_next_number_or_40001_and_a_retry_succeeds(
    orders: Database, level: psycopg.IsolationLevel, existing: bool
) -> None:
    if existing:
        orders.execute("SELECT inturn.append('orders', 'a', 'before')")
    caller = orders.session(user=CALLER)
    caller.connection.isolation_level = level
    caller.execute("SELECT FROM inturn.schema_version")
    other = orders.value("SELECT inturn.append('orders', 'a', 'other')")
    append = "SELECT inturn.append('orders', 'a', 'mine')"
    if level.value > psycopg.IsolationLevel.READ_COMMITTED.value:
        assert refusal(caller.connection, append).sqlstate == "40001"
        caller.rollback()
    assert caller.execute(append) == [(other + 1,)]
    caller.commit()
    assert [name for _, _, name, _ in log(orders)][-2:] == ["other", "mine"]


def test_a_rolled_back_savepoint_gives_its_numbers_back(orders: Database) -> None:
    caller = orders.session()
    append = "SELECT inturn.append('orders', %s, %s)"
    assert caller.execute(append, ["a", "kept"]) == [(1,)]
    caller.execute("SAVEPOINT s")
    assert caller.execute(append, ["a", "dropped"]) == [(2,)]
    assert caller.execute(append, ["b", "dropped"]) == [(1,)]
    caller.execute("ROLLBACK TO s")
    assert caller.execute(append, ["a", "kept"]) == [(2,)]
    caller.execute("RELEASE s")
    caller.commit()
    assert [row[:3] for row in log(orders)] == [("a", 1, "kept"), ("a", 2, "kept")]


def test_a_key_whose_first_append_was_rolled_back_to_a_savepoint_starts_from_one(
    orders: Database,
) -> None:
    caller = orders.session()
    caller.execute("SAVEPOINT s")
    caller.execute("SELECT inturn.append('orders', 'a', 'dropped')")
    caller.execute("ROLLBACK TO s")
    assert caller.execute("SELECT inturn.append('orders', 'a', 'kept')") == [(1,)]
    caller.commit()
    assert orders.value("SELECT ready_at IS NOT NULL FROM inturn.key_cursor WHERE key = 'a'")


@pytest.mark.parametrize("level", LEVELS)
def test_numbers_stay_right_over_hundreds_of_commands_and_rolled_back_savepoints(
    orders: Database, level: psycopg.IsolationLevel
) -> None:
    seq = 0
    for _ in range(3):
        caller = orders.session(user=CALLER)
        caller.connection.isolation_level = level
        for length in (1, 31, 33):
            caller.execute("SAVEPOINT s")
            for ahead in range(40):
                row = caller.execute("SELECT inturn.append('orders', 'a', 'dropped')")
                assert row == [(seq + ahead + 1,)]
            caller.execute("ROLLBACK TO s")
            for _ in range(length):
                seq += 1
                assert caller.execute("SELECT inturn.append('orders', 'a', 'kept')") == [(seq,)]
        caller.commit()
    assert [(row[1], row[2]) for row in log(orders)] == [(n, "kept") for n in range(1, seq + 1)]


def test_prepared_statements_outlive_the_switch_to_a_generic_plan(orders: Database) -> None:
    caller = orders.connect(user=CALLER)
    caller.execute("PREPARE mine AS SELECT inturn.append('orders', $1, 'insert')")
    for seq in range(1, 21):
        for key in ("a", "b"):
            row = caller.execute(f"EXECUTE mine ('{key}')").fetchone()
            assert row == (seq,)
    for seq in range(21, 41):
        row = caller.execute("SELECT inturn.append('orders', %s, 'insert')", ["a"], prepare=True).fetchone()
        assert row == (seq,)


def test_a_prepared_append_survives_a_topic_made_meanwhile(orders: Database) -> None:
    caller = orders.connect(user=CALLER)
    caller.execute("PREPARE mine AS SELECT inturn.append($1, 'a', 'insert')")
    assert refusal(caller, "EXECUTE mine ('later')").sqlstate == "IT001"
    orders.execute("SELECT inturn.create_topic('later')")
    assert caller.execute("EXECUTE mine ('later')").fetchone() == (1,)


def test_it_is_refused_in_a_read_only_transaction_and_leaves_nothing(orders: Database) -> None:
    caller = orders.session(user=CALLER)
    caller.connection.read_only = True
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        caller.execute("SELECT inturn.append('orders', 'a', 'insert')")
    caller.rollback()
    assert left_behind(orders) == []


def test_it_works_for_every_row_of_a_query(orders: Database) -> None:
    query = "SELECT inturn.append('orders', 'k' || n % 3, 'n') FROM generate_series(0, 8) n"
    assert [seq for (seq,) in orders.execute(query)] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


#: What a caller's session may have set.
SETTINGS = [
    "search_path = ''",
    "standard_conforming_strings = off",
    "plpgsql.variable_conflict = use_column",
    "datestyle = 'German'",
    "client_encoding = 'latin1'",
    "default_transaction_isolation = 'serializable'",
    "row_security = off",
    "plpgsql.extra_errors = 'all'",
    "lock_timeout = '1s'",
    "plan_cache_mode = force_generic_plan",
    "plan_cache_mode = force_custom_plan",
    "enable_indexscan = off",
]


def test_a_setting_of_the_callers_session_changes_nothing(orders: Database) -> None:
    for number, setting in enumerate(SETTINGS):
        with orders.connect(user=CALLER) as caller:
            caller.execute(f"SET {setting}")
            for seq in (1, 2, 3):
                row = caller.execute("SELECT inturn.append('orders', 'ü', 'insert')").fetchone()
                assert row == (5 * number + seq,), setting
            caller.execute("INSERT INTO inturn.outbox (topic, key, name) VALUES ('orders', 'ü', 'x')")
            caller.execute("SELECT inturn.append_many('orders', '{ü}', '{x}')")
        last = orders.execute("SELECT key, max(seq) FROM inturn.command_log GROUP BY key")
        assert last == [("ü", 5 * number + 5)], setting
