"""The receiver's helper: which command a request is, whose it is, and accept on every kind of connection."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row, scalar_row, tuple_row
from sqlalchemy import NullPool, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from standardwebhooks import Webhook
from support.database import Database
from support.roles import OWNER

from inturn.applier import headers as names
from inturn.applier.receiver import Received, receive
from inturn.schema.errors import (
    BodyRefused,
    HeaderMissing,
    HeaderRefused,
    InturnError,
    NotInTransaction,
    RequestRefused,
    SecretRefused,
    SignatureRefused,
)
from inturn.schema.receiver import upgrade_receiver

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two octets...").decode()
OTHER = "whsec_" + base64.b64encode(b"another of thirty-two octets....").decode()
BODY = b'{"amount": 3}'
RECEIVED = Received("orders", "Grüße/42 🙂.x", 7, 12, "in sert", 2, BODY)


def request(
    received: Received = RECEIVED, *, secret: str | None = SECRET, late: timedelta = timedelta()
) -> dict[str, str]:
    """Return the headers of a post, as an applier sends it."""
    command_id = names.command_id(received.topic, received.key, received.seq, received.name)
    headers = {
        names.IDEMPOTENCY_KEY: command_id,
        names.TOPIC: names.encode(received.topic),
        names.KEY: names.encode(received.key),
        names.SEQ: str(received.seq),
        names.EPOCH: str(received.epoch),
        names.COMMAND: names.encode(received.name),
        names.ATTEMPT: str(received.attempt),
    }
    if secret is not None:
        at = datetime.now(UTC) - late
        headers[names.WEBHOOK_ID] = command_id
        headers[names.WEBHOOK_TIMESTAMP] = str(int(at.timestamp()))
        headers[names.WEBHOOK_SIGNATURE] = Webhook(secret).sign(command_id, at, received.body.decode())
    return headers


class Framework:
    """Headers as a web framework has them: no mapping, but with items()."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers

    def items(self) -> Iterator[tuple[str, str]]:
        return iter(self._headers.items())


FORMS: dict[str, Callable[[dict[str, str]], Any]] = {
    "mapping": lambda h: h,
    "lower case": lambda h: {name.lower(): value for name, value in h.items()},
    "pairs": lambda h: list(h.items()),
    "ASGI": lambda h: [(name.lower().encode(), value.encode()) for name, value in h.items()],
    "WSGI": lambda h: (
        {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in h.items()}
        | {"wsgi.version": (1, 0), "CONTENT_TYPE": "application/json"}
    ),
    "framework": Framework,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_request_is_read_from_headers_of_any_form(form: str) -> None:
    assert receive(FORMS[form](request()), BODY, secret=SECRET) == RECEIVED
    assert RECEIVED.payload == {"amount": 3}


def test_a_header_holds_any_text() -> None:
    for text in ("", "a b", "%", "Ä", "\r\nInturn-Seq: 9", "\0", "魏🙂"):
        encoded = names.encode(text)
        assert encoded.isascii()
        assert encoded.isprintable()
        assert " " not in encoded
        assert names.decode(encoded) == text


def test_an_id_is_that_of_one_command_alone() -> None:
    ids = {
        names.command_id(*place)
        for place in [
            ("a", "b", 1, "c"),
            ("a/b", "", 1, "c"),
            ("a", "b/1", 1, "c"),
            ("a", "b", 11, "c"),
            ("a", "b", 1, "d"),
        ]
    }
    assert len(ids) == 5
    # What parts it from the rest in what is signed is not in it; and it is the same tomorrow.
    assert names.command_id("a.b", "c.d", 1, "e.f") == "a5398efa-84dc-5090-b8ee-ee923be2fd79"


def test_without_a_secret_any_request_is_taken() -> None:
    assert receive(request(secret=None), BODY, secret=None) == RECEIVED
    assert receive(request(), BODY, secret=None) == RECEIVED


@pytest.mark.parametrize(
    "header", [names.TOPIC, names.KEY, names.SEQ, names.EPOCH, names.COMMAND, names.ATTEMPT]
)
def test_a_header_that_is_missing_or_there_twice_is_named(header: str) -> None:
    headers = request()
    with pytest.raises(HeaderRefused, match=f"the header {header} 2 times"):
        receive([*headers.items(), (header.lower(), headers[header])], BODY, secret=SECRET)
    del headers[header]
    with pytest.raises(HeaderMissing, match=f"no header {header}"):
        receive(headers, BODY, secret=SECRET)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        *((names.SEQ, value) for value in ("", "-1", "1.0", " 1", "٣", "0x1", str(2**63), "9" * 5000)),
        (names.EPOCH, "one"),
        (names.KEY, "%ff"),
        (names.TOPIC, "%c3%28"),
        (names.COMMAND, "a%00b"),
    ],
)
def test_a_header_that_cannot_be_read_is_named(header: str, value: str) -> None:
    with pytest.raises(HeaderRefused, match=header) as refused:
        receive(request() | {header: value}, BODY, secret=None)
    assert len(str(refused.value)) < 200


def changed(header: str, value: str) -> Callable[[dict[str, str]], dict[str, str]]:
    return lambda headers: headers | {header: value}


@pytest.mark.parametrize(
    ("change", "body", "said"),
    [
        (dict, b'{"amount": 4}', "No matching signature"),
        (dict, b"\xff", "cannot be read"),
        (changed(names.WEBHOOK_TIMESTAMP, "1"), BODY, "too old"),
        (changed(names.WEBHOOK_TIMESTAMP, "later"), BODY, "Invalid"),
        (changed(names.WEBHOOK_TIMESTAMP, "nan"), BODY, "Invalid"),
        (changed(names.WEBHOOK_ID, "orders/x/1/insert"), BODY, "No matching signature"),
        (changed(names.WEBHOOK_SIGNATURE, ""), BODY, "Missing"),
        (changed(names.WEBHOOK_SIGNATURE, "v1"), BODY, "cannot be read"),
        (changed(names.WEBHOOK_SIGNATURE, "v1,ä"), BODY, "cannot be read"),
        (changed(names.WEBHOOK_SIGNATURE, "v2,AAAA"), BODY, "No matching signature"),
        # What it says of the command is signed too, by the id.
        (changed(names.TOPIC, "bills"), BODY, "of another command"),
        (changed(names.KEY, "order-43"), BODY, "of another command"),
        (changed(names.SEQ, "8"), BODY, "of another command"),
        (changed(names.COMMAND, "delete"), BODY, "of another command"),
    ],
)
def test_a_request_that_was_changed_is_refused(
    change: Callable[[dict[str, str]], dict[str, str]], body: bytes, said: str
) -> None:
    with pytest.raises(SignatureRefused, match=said):
        receive(change(request()), body, secret=SECRET)


def test_without_its_extra_a_signature_is_not_verified_and_the_error_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "standardwebhooks", None)
    with pytest.raises(ImportError, match=r"pip install 'inturn\[receiver\]'"):
        receive(request(), BODY, secret=SECRET)
    assert receive(request(), BODY, secret=None) == RECEIVED


@pytest.mark.parametrize("minutes", [-6, 6])
def test_a_request_older_or_newer_than_five_minutes_is_refused(minutes: int) -> None:
    with pytest.raises(SignatureRefused, match=r"too (old|new)") as refused:
        receive(request(late=timedelta(minutes=minutes)), BODY, secret=SECRET)
    assert "clocks" in refused.value.hint
    assert receive(request(late=timedelta(minutes=minutes / 1.5)), BODY, secret=SECRET) == RECEIVED


def test_a_request_without_a_signature_or_with_another_secrets_is_refused() -> None:
    with pytest.raises(SignatureRefused, match="is not signed: the request has no header webhook-id"):
        receive(request(secret=None), BODY, secret=SECRET)
    with pytest.raises(SignatureRefused):
        receive(request(secret=OTHER), BODY, secret=SECRET)


def test_while_a_secret_is_changed_both_are_taken() -> None:
    for secret in (SECRET, OTHER):
        assert receive(request(secret=secret), BODY, secret=[SECRET, OTHER]) == RECEIVED
    two = request()
    two[names.WEBHOOK_SIGNATURE] = (
        f"{request(secret=OTHER)[names.WEBHOOK_SIGNATURE]} {two[names.WEBHOOK_SIGNATURE]}"
    )
    assert receive(two, BODY, secret=SECRET) == RECEIVED


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_a", [], [""]])
def test_a_secret_that_is_none_is_refused_and_not_quoted(secret: str | list[str]) -> None:
    with pytest.raises(SecretRefused) as refused:
        receive(request(), BODY, secret=secret)
    assert "whsec_a" not in str(refused.value)


def test_the_errors_are_of_one_tree() -> None:
    for kind in (SignatureRefused, HeaderMissing, HeaderRefused, BodyRefused):
        assert issubclass(kind, RequestRefused)
    assert issubclass(RequestRefused, InturnError)
    with pytest.raises(BodyRefused, match="not JSON"):
        _ = Received("orders", "x", 1, 1, "insert", 1, b"{").payload


# accept, on every kind of connection.


@pytest.fixture
def receiver(empty_database: Database) -> Database:
    upgrade_receiver(empty_database.dsn)
    return empty_database


def numbered(seq: int) -> Received:
    return Received("orders", "x", seq, 1, "insert", 1, BODY)


def twice(receiver: Database, seq: int, connection: Any, commit: Callable[[], None]) -> None:
    """Accept a number, which is not there before the commit, and is not accepted again after it."""
    assert numbered(seq).accept(connection) is True
    assert receiver.execute("SELECT 1 FROM inturn.accepted WHERE seq = %s", [seq]) == []
    commit()
    assert numbered(seq).accept(connection) is False
    commit()


def test_accept_on_psycopg_whatever_its_rows(receiver: Database) -> None:
    for seq, rows in enumerate((tuple_row, dict_row, scalar_row), 1):
        connection = receiver.connect(autocommit=False, row_factory=rows, user=OWNER)
        twice(receiver, 2 * seq, connection, connection.commit)
        twice(receiver, 2 * seq + 1, connection.cursor(), connection.commit)


def test_accept_on_sqlalchemy(receiver: Database) -> None:
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(receiver.dsn), poolclass=NullPool
    )
    with engine.connect() as connection:
        twice(receiver, 1, connection, connection.commit)
        twice(receiver, 2, connection.connection.cursor(), connection.connection.commit)
    with Session(engine) as session:
        twice(receiver, 3, session, session.commit)
    registry = scoped_session(sessionmaker(engine))  # what Flask-SQLAlchemy's db.session is
    twice(receiver, 4, registry, registry.commit)
    registry.remove()


def test_accept_async(receiver: Database) -> None:
    async def run() -> list[bool]:
        answers = []
        async with await psycopg.AsyncConnection.connect(receiver.dsn) as connection:
            answers += [await numbered(1).accept_async(connection) for _ in range(2)]
            for seq, rows in enumerate((tuple_row, dict_row, scalar_row), 2):
                async with connection.cursor(row_factory=rows) as cursor:
                    answers += [await numbered(seq).accept_async(cursor) for _ in range(2)]
        engine = create_async_engine(
            "postgresql+psycopg://",
            async_creator=lambda: psycopg.AsyncConnection.connect(receiver.dsn),
            poolclass=NullPool,
        )
        async with engine.begin() as other:
            answers += [await numbered(5).accept_async(other) for _ in range(2)]
        async with AsyncSession(engine) as session:
            answers += [await numbered(6).accept_async(session) for _ in range(2)]
        return answers

    assert asyncio.run(run()) == [True, False] * 6


def test_accept_refuses_the_other_kind_and_what_is_no_connection_before_it_asks(receiver: Database) -> None:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(receiver.dsn))
    async_engine = create_async_engine("postgresql+psycopg://")
    no_connection: list[Any] = [None, receiver.dsn, engine, async_engine, psycopg, object()]

    async def run() -> None:
        async with await psycopg.AsyncConnection.connect(receiver.dsn) as other, other.cursor() as cursor:
            for each in (other, cursor, async_engine.connect(), AsyncSession(async_engine)):
                with pytest.raises(TypeError, match=r"is for accept_async$"):
                    numbered(1).accept(each)  # type: ignore[arg-type]
        connection = receiver.connect(autocommit=False, user=OWNER)
        with engine.connect() as alchemy, Session(engine) as session:
            for one in (connection, connection.cursor(), alchemy, session):
                with pytest.raises(TypeError, match=r"is for accept$"):
                    await numbered(1).accept_async(one)  # type: ignore[arg-type]
        for none in no_connection:
            with pytest.raises(TypeError, match=r"is not a connection: give psycopg's Connection or"):
                numbered(1).accept(none)
            with pytest.raises(TypeError, match=r"is not a connection: give psycopg's AsyncConnection or"):
                await numbered(1).accept_async(none)

    asyncio.run(run())
    engine.dispose()
    assert receiver.execute("SELECT 1 FROM inturn.accepted") == []


def test_accept_outside_a_transaction_is_refused_before_anything_is_accepted(receiver: Database) -> None:
    connection = receiver.connect(autocommit=True, user=OWNER)
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(receiver.dsn), poolclass=NullPool
    )
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as alchemy, Session(autocommit) as session:
        for each in (connection, connection.cursor(), alchemy, session):
            with pytest.raises(NotInTransaction, match="without the effect"):
                numbered(1).accept(each)
    assert receiver.execute("SELECT 1 FROM inturn.accepted") == []
    with connection.transaction():
        assert numbered(1).accept(connection)


def test_accept_async_outside_a_transaction_is_refused(receiver: Database) -> None:
    async def run() -> None:
        async with await psycopg.AsyncConnection.connect(receiver.dsn, autocommit=True) as connection:
            with pytest.raises(NotInTransaction):
                await numbered(1).accept_async(connection)
            async with connection.transaction():
                assert await numbered(1).accept_async(connection)
        engine = create_async_engine(
            "postgresql+psycopg://",
            async_creator=lambda: psycopg.AsyncConnection.connect(receiver.dsn),
            poolclass=NullPool,
        ).execution_options(isolation_level="AUTOCOMMIT")
        async with engine.connect() as other, AsyncSession(engine) as session:
            for each in (other, session):
                with pytest.raises(NotInTransaction):
                    await numbered(2).accept_async(each)

    asyncio.run(run())


def test_accept_in_another_schema(receiver: Database) -> None:
    upgrade_receiver(receiver.dsn, schema="elsewhere")
    with receiver.connect(autocommit=False, user=OWNER) as connection:
        assert numbered(1).accept(connection, schema="elsewhere")
    assert receiver.execute("SELECT seq FROM elsewhere.accepted") == [(1,)]
    assert receiver.execute("SELECT 1 FROM inturn.accepted") == []


def test_what_the_database_says_comes_in_the_drivers_words(empty_database: Database) -> None:
    with pytest.raises(psycopg.errors.InvalidSchemaName):
        numbered(1).accept(empty_database.connect(autocommit=False, user=OWNER))


def test_the_payload_is_made_anew(receiver: Database) -> None:
    received = numbered(1)
    received.payload["amount"] = 4
    assert received.payload == json.loads(BODY)
