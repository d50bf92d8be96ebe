"""append and append_many, and their async forms: in the caller's transaction, never committing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg
from psycopg.rows import tuple_row

from inturn.outbox import statement
from inturn.outbox.statement import NewCommand, Statement, check_kind
from inturn.schema.source import DEFAULT_SCHEMA

if TYPE_CHECKING:
    # See drivers; and asyncio's needs greenlet when it is imported, which only its users install.
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

SyncConnection: TypeAlias = "psycopg.Connection[Any] | Connection | Session | scoped_session[Any]"
AnyAsyncConnection: TypeAlias = (
    "psycopg.AsyncConnection[Any] | AsyncConnection | AsyncSession | async_scoped_session[Any]"
)


def append(
    connection: SyncConnection,
    topic: str,
    key: str,
    name: str,
    payload: Any = None,
    *,
    idempotency_key: str | None = None,
    seq: int | None = None,
    schema: str = DEFAULT_SCHEMA,
) -> int | None:
    """Append one command to a key, in the transaction of the given connection, and return its seq.

    It never commits, except in autocommit, and locks the key for other callers until the transaction ends.

    Args:
        connection: psycopg's Connection, or SQLAlchemy's Connection, Session or scoped_session.
        topic: the name of a topic that exists.
        key: what must stay in order, such as an order id; 1 to 512 octets, compared byte by byte.
        name: what the command is called; 1 to 128 octets.
        payload: anything that json.dumps accepts, up to the topic's max_payload_bytes; None stands for {}.
        idempotency_key: a second append with the same one on the key adds nothing and returns the first seq.
        seq: the command's number in its key, in a topic whose callers number; None in every other topic.
        schema: the schema in which inturn is installed.

    Returns:
        The seq; None with numbering `arrival`, where appliers number the command, and nothing is locked.

    Raises:
        UnknownTopic: the topic was never created.
        KeyRefused, NameRefused, PayloadRefused, IdempotencyKeyRefused, IdempotencyKeyReused, TooManyPending,
            SeqRefused, SeqBelowFirst, SeqTaken, SeqPassedOver, SeqTooFarAhead, SeqPruned: see CommandRefused.
        AppendConflict: roll back and run the transaction again (REPEATABLE READ, SERIALIZABLE).
        TopicNotGranted: this login may not append to the topic.
        StatementPooling: the connection goes through a pooler in statement mode, without transactions.
        SchemaNameRefused, TypeError: no schema has such a name; it is not a connection, or an async one.
        psycopg.Error, sqlalchemy.exc.DBAPIError: anything else that the database says.
    """
    command = NewCommand(key, name, payload, idempotency_key)
    return _as_seq(_run(connection, statement.one(topic, command, seq, schema)))


def append_many(
    connection: SyncConnection,
    topic: str,
    commands: Iterable[NewCommand],
    *,
    schema: str = DEFAULT_SCHEMA,
) -> list[int | None]:
    """Append many commands in one round trip, in the transaction of the given connection.

    It locks the keys in the order of their bytes, so two transactions that each make one such call never
    deadlock.

    Args:
        connection, topic, schema: as for `append`.
        commands: commands of one key keep their order. They cannot carry a seq, so a topic whose callers
            number refuses them all (SeqRefused).

    Returns:
        Their seqs, in the same order; in a topic with numbering `arrival` None for each.

    Raises:
        The same as `append`. Nothing is appended then.
    """
    commands = list(commands)
    return list(_run(connection, statement.many(topic, commands, schema))) if commands else []


async def append_async(
    connection: AnyAsyncConnection,
    topic: str,
    key: str,
    name: str,
    payload: Any = None,
    *,
    idempotency_key: str | None = None,
    seq: int | None = None,
    schema: str = DEFAULT_SCHEMA,
) -> int | None:
    """Do what `append` does, on psycopg's AsyncConnection or SQLAlchemy's AsyncConnection or AsyncSession."""
    command = NewCommand(key, name, payload, idempotency_key)
    return _as_seq(await _run_async(connection, statement.one(topic, command, seq, schema)))


async def append_many_async(
    connection: AnyAsyncConnection,
    topic: str,
    commands: Iterable[NewCommand],
    *,
    schema: str = DEFAULT_SCHEMA,
) -> list[int | None]:
    """Do what `append_many` does, on the same kinds of connection as `append_async`."""
    commands = list(commands)
    if not commands:
        return []
    return list(await _run_async(connection, statement.many(topic, commands, schema)))


def _as_seq(found: Any) -> int | None:
    return None if found is None else int(found)


def _run(connection: SyncConnection, call: Statement) -> Any:
    with call.errors():
        if isinstance(connection, psycopg.Connection):
            # A cursor of our own: the connection's row factory may make anything of a row.
            with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
                row = cursor.execute(call.for_psycopg(), call.parameters).fetchone()
            return row[0] if row else None
        check_kind(connection, is_async=False)
        return connection.execute(call.for_sqlalchemy(), call.parameters).scalar_one()


async def _run_async(connection: AnyAsyncConnection, call: Statement) -> Any:
    with call.errors():
        if isinstance(connection, psycopg.AsyncConnection):
            async with psycopg.AsyncCursor(connection, row_factory=tuple_row) as cursor:
                await cursor.execute(call.for_psycopg(), call.parameters)
                row = await cursor.fetchone()
            return row[0] if row else None
        check_kind(connection, is_async=True)
        result = await connection.execute(call.for_sqlalchemy(), call.parameters)
        return result.scalar_one()
