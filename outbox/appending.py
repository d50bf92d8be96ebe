"""append and append_many, and their async forms: in the caller's transaction, never committing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg
from psycopg.rows import tuple_row
from sqlalchemy import Connection
from sqlalchemy.orm import Session, scoped_session

from inturn.outbox import statement
from inturn.outbox.statement import NewCommand, Statement, check_kind
from inturn.schema.source import DEFAULT_SCHEMA

if TYPE_CHECKING:
    # Needs greenlet when it is imported, which only its users install.
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

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

    The key is locked for other callers until that transaction ends: its commit decides the order.
    In a topic with numbering `arrival` nothing is locked, and None is returned: an applier numbers the
    command after the commit.

    Args:
        connection: psycopg's Connection, or SQLAlchemy's Connection or Session.
        topic: what kind of command, and who applies it.
        key: what must stay in order; 1 to 512 octets, compared byte by byte.
        name: what the command is called; 1 to 128 octets.
        payload: anything that json.dumps takes; None stands for {}.
        idempotency_key: the same again on the same key appends nothing and returns the first seq.
        seq: the command's number in its key, in a topic whose callers number; None in every other.
            Numbers may come in any order, from many machines, and be repeated with the same content.
        schema: where inturn is installed.

    Raises:
        UnknownTopic: the topic was never created.
        CommandRefused: a part of the command cannot be appended (see its subclasses).
        SeqBelowFirst, SeqTaken, SeqPassedOver, SeqTooFarAhead, SeqRefused: the number cannot be taken.
        TopicNotGranted: this login may not append to the topic.
        TypeError: the connection is for append_async, or is none.
        StatementPooling: a pooler in statement mode stands between, which has no transactions.
        AppendConflict: roll back and run the transaction again (REPEATABLE READ, SERIALIZABLE).
        psycopg.Error, sqlalchemy.exc.DBAPIError: anything else the database says.
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
    """Append many commands in one round trip and return their seqs in the same order.

    In a topic with numbering `arrival`, each is None.
    Keys are locked in byte order: two transactions that each make one such call never deadlock.

    Args:
        connection, topic, schema: as for `append`.
        commands: commands of one key keep their order. They have no numbers of yours: where callers number,
            SeqRefused is raised.

    Raises:
        As `append` does; nothing is appended then.
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
    """Do as `append`, on psycopg's AsyncConnection or SQLAlchemy's async ones."""
    command = NewCommand(key, name, payload, idempotency_key)
    return _as_seq(await _run_async(connection, statement.one(topic, command, seq, schema)))


async def append_many_async(
    connection: AnyAsyncConnection,
    topic: str,
    commands: Iterable[NewCommand],
    *,
    schema: str = DEFAULT_SCHEMA,
) -> list[int | None]:
    """Do as `append_many`, on psycopg's AsyncConnection or SQLAlchemy's async ones."""
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
