"""append and append_many from Python, by every kind of connection."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from subprocess import run
from typing import Any

import psycopg
import pytest
from psycopg.rows import class_row, dict_row
from sqlalchemy import BigInteger, FetchedValue, Text, create_engine
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.callers import CALLERS, Caller, Many, Step
from support.database import Database
from support.roles import CALLER, members

from inturn.outbox import NewCommand, append, append_many
from inturn.schema.errors import SchemaNameRefused
from inturn.schema.install import upgrade

every_caller = pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS.keys())


@pytest.fixture
def orders(database: Database) -> Database:
    """The database with topic `orders`."""
    database.execute("SELECT inturn.create_topic('orders')")
    return database


def log(database: Database) -> list[tuple[Any, ...]]:
    return database.execute(
        "SELECT key, seq, name, payload, idempotency_key FROM inturn.command_log ORDER BY key, seq"
    )


@every_caller
def test_what_is_given_is_appended_and_its_seq_returned(orders: Database, caller: Caller) -> None:
    payload = {"text": "ü 😀 % :name %(x)s", "list": [1, 2.5, None, True], "n": {}}
    returned = caller(
        orders,
        Step("orders", "a", "insert", payload),
        Step("orders", "a %s :key", "insert", [], idempotency_key="once"),
        Step("orders", "a", "delete"),
        Step("orders", "a %s :key", "insert", [], idempotency_key="once"),
    )
    assert returned == [1, 1, 2, 1]
    assert [type(seq) for seq in returned] == [int] * 4
    assert log(orders) == [
        ("a", 1, "insert", payload, None),
        ("a", 2, "delete", {}, None),
        ("a %s :key", 1, "insert", [], "once"),
    ]


@every_caller
def test_many_are_appended_in_order_in_one_call(orders: Database, caller: Caller) -> None:
    commands = [
        NewCommand("b", "insert", {"q": "'{,}\\\""}),
        NewCommand("a", "insert", None, "once"),
        NewCommand("b", "update", 'NULL "quoted" \\ text'),
        NewCommand("a", "insert", None, "once"),
        NewCommand("NULL", "{x}"),
    ]
    assert caller(
        orders, Many("orders", iter(commands)), Many("orders", []), Many("orders", commands[:1])
    ) == [[1, 1, 2, 1, 1], [], [3]]
    assert log(orders) == [
        ("NULL", 1, "{x}", {}, None),
        ("a", 1, "insert", {}, "once"),
        ("b", 1, "insert", {"q": "'{,}\\\""}, None),
        ("b", 2, "update", 'NULL "quoted" \\ text', None),
        ("b", 3, "insert", {"q": "'{,}\\\""}, None),
    ]


@every_caller
def test_it_never_commits(orders: Database, caller: Caller) -> None:
    steps = (Step("orders", "a", "x"), Many("orders", [NewCommand("b", "x")]))
    assert caller(orders, *steps, commit=False) == [1, [1]]
    assert log(orders) == []
    assert orders.execute("SELECT key FROM inturn.key_sequence") == []
    assert caller(orders, *steps) == [1, [1]]


def test_another_schema_is_asked_when_named(orders: Database) -> None:
    upgrade(orders.dsn, schema="second")
    orders.execute(members("second"))
    orders.execute("SELECT second.create_topic('theirs')")
    for kind, caller in CALLERS.items():
        assert caller(
            orders,
            Step("theirs", kind, "x", schema="second"),
            Many("theirs", [NewCommand(kind, "y")], schema="second"),
        ) == [1, [2]], kind
    assert orders.value("SELECT count(*) FROM second.command_log") == 2 * len(CALLERS)
    assert log(orders) == []


def test_a_schema_name_that_needs_quoting_is_refused(orders: Database) -> None:
    with pytest.raises(SchemaNameRefused):
        append(orders.connect(user=CALLER), "orders", "a", "x", schema="inturn.append(); --")


def test_it_is_part_of_the_callers_own_work(orders: Database) -> None:
    orders.execute("CREATE TABLE own (id integer)")
    connection = orders.connect(user=CALLER, autocommit=False)
    connection.execute("INSERT INTO own VALUES (1)")
    append(connection, "orders", "a", "x")
    with connection.transaction():
        append(connection, "orders", "a", "dropped")
        raise psycopg.Rollback
    append(connection, "orders", "a", "y")
    assert orders.value("SELECT count(*) FROM inturn.command_log") == 0
    connection.commit()
    assert [row[:3] for row in log(orders)] == [("a", 1, "x"), ("a", 2, "y")]


def test_in_a_nested_transaction_of_sqlalchemy_it_goes_with_it(orders: Database) -> None:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(orders.caller_dsn))
    with Session(engine) as session:
        append(session, "orders", "a", "kept")
        nested = session.begin_nested()
        assert append(session, "orders", "a", "dropped") == 2
        nested.rollback()
        assert append(session, "orders", "a", "kept") == 2
        session.commit()
    engine.dispose()
    assert [row[2] for row in log(orders)] == ["kept", "kept"]


def test_in_autocommit_each_append_is_its_own_transaction(orders: Database) -> None:
    connection = orders.connect(user=CALLER)
    assert append(connection, "orders", "a", "x") == 1
    assert [row[1] for row in log(orders)] == [1]


@dataclass
class _Anything:
    append: int


@pytest.mark.parametrize("factory", [dict_row, class_row(_Anything)], ids=["dict", "class"])
def test_a_row_factory_of_the_connection_is_no_matter(orders: Database, factory: Any) -> None:
    with psycopg.connect(orders.caller_dsn, row_factory=factory) as connection:
        assert append(connection, "orders", "a", "x") == 1
        assert append_many(connection, "orders", [NewCommand("a", "y")]) == [2]


def test_a_cursor_factory_of_the_connection_is_no_matter(orders: Database) -> None:
    for factory in (psycopg.ClientCursor, psycopg.RawCursor):
        with psycopg.connect(orders.caller_dsn, cursor_factory=factory) as connection:
            append(connection, "orders", "a", "x", {"%": "$1"})
    assert [row[1] for row in log(orders)] == [1, 2]


def test_in_a_pipeline_it_returns_its_seq(orders: Database) -> None:
    with orders.connect(user=CALLER, autocommit=False) as connection, connection.pipeline():
        assert [append(connection, "orders", "a", "x") for _ in range(3)] == [1, 2, 3]


def test_statements_are_prepared_after_a_while_and_still_right(orders: Database) -> None:
    with orders.connect(user=CALLER, autocommit=False) as connection:
        connection.prepare_threshold = 1
        for seq in range(1, 20):
            assert append(connection, "orders", "a", "x", {"n": seq}) == seq
            append_many(connection, "orders", [NewCommand("b", "x")] * (seq % 3))


class _Base(DeclarativeBase):
    pass


class _Outbox(_Base):
    __tablename__ = "outbox"
    __table_args__ = {"schema": "inturn"}  # noqa: RUF012 - SQLAlchemy's way

    topic: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, FetchedValue(), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    payload: Mapped[Any] = mapped_column(JSONB)
    idempotency_key: Mapped[str | None] = mapped_column(Text)


def test_an_orm_class_mapped_onto_the_outbox_appends_and_learns_its_seq(orders: Database) -> None:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(orders.caller_dsn))
    with Session(engine, expire_on_commit=False) as session:
        for key, seq in (("a", 1), ("b", 1), ("a", 2)):
            command = _Outbox(topic="orders", key=key, name="insert", payload={"of": key})
            session.add(command)
            session.flush()
            assert command.seq == seq
        several = [_Outbox(topic="orders", key=key, name="x", payload=[]) for key in "cde"]
        session.add_all(several)
        session.commit()
        assert [command.seq for command in several] == [1, 1, 1]
    engine.dispose()
    assert [row[:2] for row in log(orders)] == [*(("a", 1), ("a", 2), ("b", 1), ("c", 1), ("d", 1), ("e", 1))]


def test_importing_it_or_the_receiver_brings_neither_sqlalchemy_nor_its_asyncio_afterwards() -> None:
    code = (
        "import sys, inturn.outbox, inturn.applier.receiver\n"
        "heavy = {'alembic', 'sqlalchemy', 'click', 'rich'} & {*sys.modules}\n"
        # Not greenlet: before 2.1 SQLAlchemy itself imports it.
        "import sqlalchemy.orm\n"
        "try: inturn.outbox.append(None, 't', 'k', 'n')\n"
        "except TypeError: heavy |= {'sqlalchemy.ext.asyncio'} & {*sys.modules}\n"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    done = run([sys.executable, "-W", "error", "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@every_caller
def test_a_given_number_is_the_commands_and_may_be_repeated(database: Database, caller: Caller) -> None:
    database.execute("SELECT inturn.create_topic('given', numbering => 'given')")
    steps = [Step("given", "a", "insert", {"n": seq}, seq=seq) for seq in (3, 1, 3)]
    assert caller(database, *steps) == [3, 1, 3]
    assert log(database) == [("a", 1, "insert", {"n": 1}, None), ("a", 3, "insert", {"n": 3}, None)]
