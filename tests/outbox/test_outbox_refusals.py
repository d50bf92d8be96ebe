"""What Python callers are told: exceptions of our own tree, with what they concern and a remedy."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import sqlalchemy.exc
from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from support.callers import CALLERS, Caller, Many, Step
from support.database import Database
from support.roles import CALLER

from inturn.outbox import (
    AppendConflict,
    CommandRefused,
    IdempotencyKeyRefused,
    InturnError,
    KeyRefused,
    NameRefused,
    NewCommand,
    PayloadRefused,
    SeqBelowFirst,
    SeqPassedOver,
    SeqRefused,
    SeqTaken,
    SeqTooFarAhead,
    UnknownTopic,
    append,
    append_async,
    append_many,
    wait,
    wait_async,
)

every_caller = pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS.keys())


@pytest.fixture
def orders(database: Database) -> Database:
    """The database with topic `orders`, whose payloads are at most 2000 bytes."""
    database.execute("SELECT inturn.create_topic('orders', max_payload_bytes => 2000)")
    return database


def left_behind(database: Database) -> list[tuple[Any, ...]]:
    return database.execute(
        "SELECT key FROM inturn.command_log UNION ALL SELECT key FROM inturn.key_sequence"
    )


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


#: what is wrong with it → (key, name, payload, idempotency key), the error, a word of its message
BAD: dict[str, tuple[tuple[Any, ...], type[CommandRefused], str]] = {
    "key NULL": ((None, "n", {}, None), KeyRefused, "NULL"),
    "key empty": (("", "n", {}, None), KeyRefused, "empty"),
    "key long": (("x" * 513, "n", {}, None), KeyRefused, "513"),
    "key NUL": (("a\0b", "n", {}, None), KeyRefused, "NUL"),
    "key surrogate": (("a\ud800", "n", {}, None), KeyRefused, "surrogate"),
    "name NULL": (("a", None, {}, None), NameRefused, "NULL"),
    "name empty": (("a", "", {}, None), NameRefused, "empty"),
    "name long": (("a", "x" * 129, {}, None), NameRefused, "129"),
    "name NUL": (("a", "\0", {}, None), NameRefused, "NUL"),
    "idempotency empty": (("a", "n", {}, ""), IdempotencyKeyRefused, "0 octets"),
    "idempotency long": (("a", "n", {}, "x" * 513), IdempotencyKeyRefused, "513"),
    "idempotency NUL": (("a", "n", {}, "\0"), IdempotencyKeyRefused, "NUL"),
    "payload long": (("a", "n", "x" * 1999, None), PayloadRefused, "2001 bytes, over the 2000"),
    "payload NaN": (("a", "n", [float("nan")], None), PayloadRefused, "not JSON"),
    "payload infinite": (("a", "n", float("-inf"), None), PayloadRefused, "not JSON"),
    "payload circular": (("a", "n", circular(), None), PayloadRefused, "not JSON"),
    "payload deep": (("a", "n", deep(10_000), None), PayloadRefused, "JSON"),
    "payload object": (("a", "n", object(), None), PayloadRefused, "not JSON"),
    "payload bytes": (("a", "n", b"{}", None), PayloadRefused, "not JSON"),
    "payload odd names": (("a", "n", {(1, 2): 3}, None), PayloadRefused, "not JSON"),
    "payload NUL": (("a", "n", {"x": "\0"}, None), PayloadRefused, "cannot store"),
    "payload NUL name": (("a", "n", {"\0": 1}, None), PayloadRefused, "cannot store"),
    "payload surrogate": (("a", "n", "\ud800", None), PayloadRefused, "cannot store"),
    "payload digits": (("a", "n", 10**3000, None), PayloadRefused, "3001 bytes, over the 2000"),
}


@every_caller
def test_what_cannot_be_appended_is_refused_by_name_and_leaves_nothing(
    orders: Database, caller: Caller
) -> None:
    for what, ((key, name, payload, idempotency_key), kind, word) in BAD.items():
        with pytest.raises(kind) as refused:
            caller(
                orders,
                Step("orders", "good", "x"),
                Step("orders", key, name, payload, idempotency_key=idempotency_key),
            )
        error = refused.value
        assert type(error) is kind, what
        assert (error.topic, error.key) == ("orders", key), what
        assert word in error.message, what
        assert len(str(error)) < 700, what
        assert "\n" not in error.message, what
        assert left_behind(orders) == [], what


@every_caller
def test_one_bad_command_among_many_is_refused_and_leaves_nothing(orders: Database, caller: Caller) -> None:
    for what, (parts, kind, word) in BAD.items():
        with pytest.raises(kind) as refused:
            caller(orders, Many("orders", [NewCommand("good", "x"), NewCommand(*parts)]))
        assert word in refused.value.message, what
        assert refused.value.topic == "orders", what
        assert left_behind(orders) == [], what


@every_caller
def test_an_unknown_topic_is_named_with_the_remedy(orders: Database, caller: Caller) -> None:
    with pytest.raises(UnknownTopic, match="topic 'nowhere' does not exist") as refused:
        caller(orders, Step("nowhere", "a", "x"))
    assert (refused.value.topic, refused.value.key) == ("nowhere", "a")
    assert "inturn.create_topic('nowhere')" in refused.value.hint
    assert isinstance(refused.value.__cause__, (psycopg.Error, sqlalchemy.exc.DBAPIError))


def test_every_refusal_has_a_remedy(orders: Database) -> None:
    without, connection = [], orders.connect(user=CALLER)
    for what, (parts, kind, _) in BAD.items():
        with pytest.raises(kind) as refused:
            append(connection, "orders", *parts[:3], idempotency_key=parts[3])
        if not refused.value.hint:
            without.append(what)
    assert without == []


def test_what_python_refuses_leaves_the_transaction_usable(orders: Database) -> None:
    with orders.connect(user=CALLER, autocommit=False) as connection:
        assert append(connection, "orders", "a", "x") == 1
        for payload in (float("nan"), circular(), object()):
            with pytest.raises(PayloadRefused):
                append(connection, "orders", "a", "x", payload)
        with pytest.raises(KeyRefused):
            append(connection, "orders", "a\0", "x")
        assert append(connection, "orders", "a", "x") == 2


def test_nesting_beyond_postgresqls_stack_is_a_refused_payload(orders: Database) -> None:
    connection = orders.connect(user=CALLER)
    connection.execute("SET max_stack_depth = '100kB'")
    # In a thread, whose stack is empty: Python itself takes the depth.
    with ThreadPoolExecutor(1) as thread, pytest.raises(PayloadRefused, match="cannot store"):
        thread.submit(append, connection, "orders", "a", "x", deep(900)).result()
    assert left_behind(orders) == []


def test_a_key_that_is_no_text_is_a_refused_key(orders: Database) -> None:
    connection = orders.connect(user=CALLER)
    key: Any
    for key in (42, b"a", 1.5, ("a",)):
        with pytest.raises(KeyRefused):
            append(connection, "orders", key, "x")
        with pytest.raises(KeyRefused):
            append_many(connection, "orders", [NewCommand(key, "x")])
    assert left_behind(orders) == []


def test_a_name_that_is_no_text_is_a_refused_name(orders: Database) -> None:
    connection = orders.connect(user=CALLER)
    name: Any
    for name in (42, b"a"):
        with pytest.raises(NameRefused):
            append(connection, "orders", "a", name)
        with pytest.raises(NameRefused):
            append_many(connection, "orders", [NewCommand("a", name)])


def test_a_topic_that_postgresql_cannot_know_is_unknown(orders: Database) -> None:
    connection = orders.connect(user=CALLER)
    for topic in ("a\0", "\ud800"):
        with pytest.raises(UnknownTopic):
            append(connection, topic, "a", "x")
        with pytest.raises(UnknownTopic):
            append_many(connection, topic, [NewCommand("a", "x")])


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_an_older_snapshot_is_a_conflict_to_be_retried(orders: Database, level: str) -> None:
    append(orders.connect(user=CALLER), "orders", "a", "before")
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(orders.caller_dsn),
        isolation_level=level,
    )
    connection = orders.connect(user=CALLER, autocommit=False)
    connection.isolation_level = psycopg.IsolationLevel[level.replace(" ", "_")]
    with engine.connect() as alchemy:
        # Each takes its snapshot here.
        connection.execute("SELECT FROM inturn.schema_version")
        alchemy.exec_driver_sql("SELECT FROM inturn.schema_version")
        append(orders.connect(user=CALLER), "orders", "a", "meanwhile")
        callers: list[Connection | psycopg.Connection[Any]] = [connection, alchemy]
        for mine in callers:
            with pytest.raises(AppendConflict) as conflict:
                append(mine, "orders", "a", "mine")
            assert (conflict.value.topic, conflict.value.key) == ("orders", "a")
            assert conflict.value.sqlstate == "40001"
            mine.rollback()
    engine.dispose()
    assert append(connection, "orders", "a", "mine") == 3
    connection.commit()


def test_errors_that_are_none_of_ours_stay_the_drivers(orders: Database) -> None:
    orders.execute("ALTER TABLE inturn.command_log RENAME TO gone")
    with pytest.raises(psycopg.errors.UndefinedTable):
        append(orders.connect(user=CALLER), "orders", "a", "x")
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(orders.caller_dsn))
    with engine.connect() as connection, pytest.raises(sqlalchemy.exc.ProgrammingError):
        append(connection, "orders", "a", "x")
    engine.dispose()


def test_a_schema_that_is_called_as_a_word_of_sql_is_one_that_is_not_there(orders: Database) -> None:
    for function in (
        lambda mine: append(mine, "orders", "a", "x", schema="both"),
        lambda mine: wait(mine, "orders", "a", 1, schema="both"),
    ):
        with pytest.raises(psycopg.errors.InvalidSchemaName):
            function(orders.connect(user=CALLER))


def test_what_is_not_a_connection_is_refused_in_words(orders: Database) -> None:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(orders.caller_dsn))
    with psycopg.connect(orders.caller_dsn) as connection, connection.cursor() as cursor:
        mine: Any
        for mine in (engine, sessionmaker(engine), SimpleNamespace(connection=None), orders.caller_dsn, None):
            with pytest.raises(TypeError, match=r"is not a connection: give psycopg's Connection, or SQL"):
                append(mine, "orders", "a", "insert")
        for mine in (cursor, SimpleNamespace(connection=connection)):  # the second is what Django has
            with pytest.raises(TypeError, match=r"is not a connection: give its attribute `connection`"):
                append(mine, "orders", "a", "insert")
        with pytest.raises(TypeError, match=r"is not a connection: give psycopg's AsyncConnection, or SQL"):
            asyncio.run(append_async(create_async_engine("postgresql+psycopg://"), "orders", "a", "x"))  # type: ignore[arg-type]


def test_a_connection_of_the_other_kind_is_refused_before_anything_is_sent(orders: Database) -> None:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(orders.caller_dsn))
    mine: Any
    with psycopg.connect(orders.caller_dsn) as connection, Session(engine) as session:
        for mine in (connection, session, scoped_session(sessionmaker(engine))):
            for call in (append_async(mine, "orders", "a", "insert"), wait_async(mine, "orders", "a", 1)):
                with pytest.raises(TypeError, match="is a connection for append, append_many and wait"):
                    asyncio.run(call)
        assert not session.in_transaction()
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE

    async def run() -> None:
        other = create_async_engine("postgresql+psycopg://")
        async with await psycopg.AsyncConnection.connect(orders.caller_dsn) as connection:
            mine: Any
            for mine in (connection, AsyncSession(other), other.connect()):
                with pytest.raises(TypeError, match="is a connection for the functions that end in _async"):
                    append(mine, "orders", "a", "insert")
                with pytest.raises(TypeError, match="is a connection for the functions that end in _async"):
                    wait(mine, "orders", "a", 1)

    asyncio.run(run())


def test_a_closed_connection_is_the_drivers_error(orders: Database) -> None:
    connection = orders.connect(user=CALLER)
    connection.close()
    with pytest.raises(psycopg.OperationalError):
        append(connection, "orders", "a", "x")


def test_the_message_reads_with_its_remedy() -> None:
    error = KeyRefused("key is empty", hint="A key is 1 to 512 octets", topic="t", key="")
    assert str(error) == "key is empty. A key is 1 to 512 octets"
    assert isinstance(error, CommandRefused)
    assert str(InturnError("no remedy")) == "no remedy"


@pytest.mark.each_value
@every_caller
@pytest.mark.parametrize(
    ("seq", "name", "refused"),
    [
        (4, "x", SeqBelowFirst),
        (7, "other", SeqTaken),
        (6, "x", SeqPassedOver),
        (99, "x", SeqTooFarAhead),
        (None, "x", SeqRefused),
        *((value, "x", SeqRefused) for value in ("8", True, 8.0, 2**63)),
    ],
)
def test_a_number_that_cannot_be_taken_is_refused_by_its_own_error(
    witness: Database, caller: Caller, seq: Any, name: str, refused: type[InturnError]
) -> None:
    witness.execute(
        "SELECT inturn.create_topic('given', 'sql:app.apply_order', numbering => 'given', first_seq => 5,"
        " max_ahead => 10)"
    )
    append = "SELECT inturn.append('given', 'a', 'insert', seq => %s)"
    for each in (5, 7):
        witness.execute(append, [each])
    witness.execute("CALL inturn.apply()")
    witness.execute("SELECT inturn.fill_gap('given', 'a', 6, 'lost')")
    with pytest.raises(refused) as caught:
        caller(witness, Step("given", "a", name, seq=seq))
    assert isinstance(caught.value, CommandRefused)
    assert (caught.value.topic, caught.value.key) == ("given", "a")
    assert caught.value.hint
    if isinstance(seq, int) and 0 < seq < 100 and seq is not True:
        assert caught.value.seq == seq


@every_caller
def test_a_number_is_no_place_for_a_topic_that_numbers_nor_many_for_one_that_does_not(
    orders: Database, caller: Caller
) -> None:
    with pytest.raises(SeqRefused):
        caller(orders, Step("orders", "a", "x", seq=1))
    orders.execute("SELECT inturn.create_topic('given', numbering => 'given')")
    for _ in range(2):
        with pytest.raises(SeqRefused, match="no seq was given"):
            caller(orders, Many("given", [NewCommand("a", "x")]))
        orders.execute("SELECT inturn.append('given', 'a', 'insert', seq => 1)")
    assert left_behind(orders) == [("a",), ("a",)]
