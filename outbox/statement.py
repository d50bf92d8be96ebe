"""The statements that append, their parameters, and what a driver's errors on them mean."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inturn.outbox.drivers import cause_of, database_errors, is_async_connection, is_sync_connection
from inturn.schema.errors import (
    CommandRefused,
    IdempotencyKeyRefused,
    KeyRefused,
    NameRefused,
    PayloadRefused,
    SeqRefused,
    UnknownTopic,
    from_database,
)
from inturn.schema.source import check_schema_name

if TYPE_CHECKING:
    from sqlalchemy import TextClause

_ONE = """SELECT "{schema}".append(
    {topic}, {key}, {name}, CAST({payload} AS jsonb), {idempotency_key}, CAST({seq} AS bigint))"""
_MANY = """SELECT "{schema}".append_many({topic}, CAST({key} AS text[]), CAST({name} AS text[]),
    CAST({payload} AS jsonb[]), CAST({idempotency_key} AS text[]))"""
_PARAMETERS = ("topic", "key", "name", "payload", "idempotency_key", "seq")
_LARGEST_SEQ = 2**63 - 1

# What PostgreSQL raises for JSON that it cannot store: a lone surrogate, \u0000 or a character
# that the database's encoding lacks, nesting beyond its stack.
_NOT_STORABLE = frozenset({"22P02", "22P05", "54001"})


_TEXT_HINT = "Give a str that PostgreSQL can store; encode anything else first, as hex for instance"


@dataclass(frozen=True, slots=True)
class NewCommand:
    """A command for `append_many`.

    Attributes:
        key: what must stay in order; 1 to 512 octets of text, compared byte by byte.
        name: what the command is called; 1 to 128 octets.
        payload: anything that json.dumps accepts, up to the topic's max_payload_bytes; None stands for {}.
        idempotency_key: 1 to 512 octets. A second append with the same one on the same key adds nothing and
            returns the first seq.
    """

    key: str
    name: str
    payload: Any = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    """A call of append or append_many, for any driver."""

    template: str
    schema: str
    parameters: dict[str, Any]
    topic: str
    key: str | None

    def for_psycopg(self) -> bytes:
        places = {name: f"%({name})s" for name in _PARAMETERS}
        return self.template.format(schema=self.schema, **places).encode()

    def for_sqlalchemy(self) -> TextClause:
        from sqlalchemy import text

        places = {name: f":{name}" for name in _PARAMETERS}
        return text(self.template.format(schema=self.schema, **places))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the driver's errors into inturn's, where they are about what was appended."""
        try:
            yield
        except UnicodeEncodeError as error:  # psycopg speaks the encoding of the database
            raise self._not_encodable(str(error)) from error
        except database_errors() as error:
            cause = cause_of(error)
            known = from_database(cause, topic=self.topic, key=self.key)
            if known is None and "has no equivalent in encoding" in str(cause):  # 22P05, of any part
                known = self._not_encodable(str(cause).splitlines()[0])
            if known is None and getattr(cause, "sqlstate", None) in _NOT_STORABLE:
                known = PayloadRefused(
                    f"payload is JSON that PostgreSQL cannot store: {str(cause).splitlines()[0]}",
                    hint="Leave out \\u0000 and lone surrogates, and nest less deeply",
                    topic=self.topic,
                    key=self.key,
                )
            if known is None:
                raise
            known.seq = self.parameters.get("seq")
            raise known from error

    def _not_encodable(self, why: str) -> CommandRefused:
        return CommandRefused(
            f"the command has a character that the database's encoding does not have: {why}",
            hint="Use others, or a database in UTF8",
            topic=self.topic,
            key=self.key,
            seq=self.parameters.get("seq"),
        )


def one(topic: str, command: NewCommand, seq: int | None, schema: str) -> Statement:
    """Return the statement that appends one command, under a number of the caller's or the next one.

    Raises:
        CommandRefused: a part of it cannot be sent to PostgreSQL at all.
    """
    check_seq(seq, topic, command.key)
    parameters = {"topic": _checked_topic(topic), **_checked(topic, command), "seq": seq}
    return Statement(_ONE, check_schema_name(schema), parameters, topic, command.key)


def many(topic: str, commands: Sequence[NewCommand], schema: str) -> Statement:
    """Return the statement that appends many commands of one topic.

    Raises:
        CommandRefused: a part of one of them cannot be sent to PostgreSQL at all.
    """
    topic = _checked_topic(topic)
    checked = [_checked(topic, command) for command in commands]
    columns = {name: [row[name] for row in checked] for name in _PARAMETERS if name not in ("topic", "seq")}
    return Statement(_MANY, check_schema_name(schema), {"topic": topic, **columns}, topic, None)


def check_kind(connection: object, *, is_async: bool) -> None:
    """Refuse what is not a connection of the right kind, before anything is sent on it.

    Raises:
        TypeError: an async function was given one that is not, or the other way round; or it is none at all,
            such as an engine or a cursor.
    """
    kinds = [is_sync_connection(connection), is_async_connection(connection)]
    if kinds[is_async]:
        return
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    if kinds[not is_async]:
        functions = "append, append_many and wait" if is_async else "the functions that end in _async"
        raise TypeError(f"{kind} is a connection for {functions}")
    # A cursor has one, and so has Django's connection.
    inner = getattr(connection, "connection", None)
    if is_async_connection(inner) if is_async else is_sync_connection(inner):
        raise TypeError(f"{kind} is not a connection: give its attribute `connection`, which is one")
    prefix = "Async" * is_async
    raise TypeError(
        f"{kind} is not a connection: give psycopg's {prefix}Connection,"
        f" or SQLAlchemy's {prefix}Connection or {prefix}Session"
    )


def check_seq(seq: object, topic: str, key: str, *, least: int = -_LARGEST_SEQ) -> None:
    """Refuse what is neither None nor a number that a command can have.

    Raises:
        SeqRefused: it is not a number that a command can have.
    """
    if seq is not None and not (
        isinstance(seq, int) and not isinstance(seq, bool) and least <= seq <= _LARGEST_SEQ
    ):
        raise SeqRefused(
            f"seq {seq!r:.60} is not a number that a command can have",
            hint="Give the command's number in its key, an int",
            topic=topic,
            key=key,
        )


def check_place(topic: str, key: str, idempotency_key: str | None) -> None:
    """Refuse a topic, a key or an idempotency key that cannot be sent to PostgreSQL at all.

    Raises:
        UnknownTopic, KeyRefused, IdempotencyKeyRefused: one of them cannot be.
    """
    _checked_topic(topic)
    _check_texts(
        topic, key, ("key", key, KeyRefused), ("idempotency_key", idempotency_key, IdempotencyKeyRefused)
    )


def _check_texts(topic: str, key: str, *parts: tuple[str, str | None, type[CommandRefused]]) -> None:
    for part, value, refused in parts:
        if problem := _not_text(value):
            raise refused(f"{part} {value!r:.60} {problem}", hint=_TEXT_HINT, topic=topic, key=key)


def _checked(topic: str, command: NewCommand) -> dict[str, str | None]:
    _check_texts(
        topic,
        command.key,
        ("key", command.key, KeyRefused),
        ("name", command.name, NameRefused),
        ("idempotency_key", command.idempotency_key, IdempotencyKeyRefused),
    )
    try:
        payload = "{}" if command.payload is None else json.dumps(command.payload, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadRefused(
            f"payload of command {command.name!r} for key {command.key!r} is not JSON: {error}",
            hint="NaN, infinity, circular and very deep values cannot be stored, nor what"
            " json.dumps does not know",
            topic=topic,
            key=command.key,
        ) from error
    return {
        "key": command.key,
        "name": command.name,
        "payload": payload,
        "idempotency_key": command.idempotency_key,
    }


def _checked_topic(topic: str) -> str:
    if problem := _not_text(topic):
        raise UnknownTopic(f"topic {topic!r:.60} {problem}", hint=_TEXT_HINT)
    return topic


def _not_text(value: object) -> str:
    """Return why a value is not text that PostgreSQL can store; empty when it is, or NULL."""
    if value is None:
        return ""  # the database says what it thinks of that
    if not isinstance(value, str):
        return f"is of type {type(value).__name__}, not str"
    if "\0" in value:
        return "holds a NUL"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds a lone surrogate"
    return ""
