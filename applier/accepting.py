"""accept on every kind of connection: psycopg's and SQLAlchemy's, async too, and a DBAPI cursor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import psycopg
from psycopg.rows import tuple_row

from inturn.outbox.drivers import is_async_connection, is_sync_connection
from inturn.schema.errors import NotInTransaction
from inturn.schema.source import check_schema_name

if TYPE_CHECKING:
    # See drivers; and asyncio's needs greenlet when it is imported, which only its users install.
    from sqlalchemy import Connection, TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session


class Cursor(Protocol):
    """A DBAPI cursor whose parameters are written %s, as psycopg's, psycopg2's and Django's."""

    def execute(self, query: Any, parameters: Any, /) -> Any:
        """Run a statement."""

    def fetchone(self) -> Any:
        """Return a row."""


AnyConnection: TypeAlias = "psycopg.Connection[Any] | Connection | Session | scoped_session[Any] | Cursor"
AnyAsyncConnection: TypeAlias = (
    "psycopg.AsyncConnection[Any] | psycopg.AsyncCursor[Any]"
    " | AsyncConnection | AsyncSession | async_scoped_session[Any]"
)
Place: TypeAlias = Mapping[str, str | int]

_CALL = 'SELECT "{schema}".accept({topic}, {key}, CAST({seq} AS bigint), CAST({epoch} AS bigint))'
_PLACE = ("topic", "key", "seq", "epoch")
_IDLE = psycopg.pq.TransactionStatus.IDLE


def accept(connection: AnyConnection, place: Place, schema: str) -> bool:
    """Ask whether a command is to take effect now; see Received.accept."""
    _check_kind(connection, is_async=False)
    if isinstance(connection, psycopg.Connection):
        _require_transaction(connection)
        # A cursor of our own: the connection's row factory may make anything of a row.
        with psycopg.Cursor(connection, row_factory=tuple_row) as own:
            return _answer(own.execute(_on_driver(schema).encode(), place).fetchone())
    if is_sync_connection(connection):
        from sqlalchemy import Connection  # whose it is: see drivers

        given: Any = connection
        alchemy = given if isinstance(given, Connection) else given.connection()
        _require_transaction(alchemy.connection.driver_connection)
        return bool(alchemy.execute(_on_sqlalchemy(schema), place).scalar_one())
    cursor: Any = connection
    _require_transaction(getattr(cursor, "connection", None))
    cursor.execute(_on_driver(schema), place)
    return _answer(cursor.fetchone())


async def accept_async(connection: AnyAsyncConnection, place: Place, schema: str) -> bool:
    """Ask the same on an async connection."""
    _check_kind(connection, is_async=True)
    if isinstance(connection, psycopg.AsyncConnection):
        _require_transaction(connection)
        async with psycopg.AsyncCursor(connection, row_factory=tuple_row) as own:
            await own.execute(_on_driver(schema).encode(), place)
            return _answer(await own.fetchone())
    if isinstance(connection, psycopg.AsyncCursor):
        _require_transaction(connection.connection)
        await connection.execute(_on_driver(schema).encode(), place)
        return _answer(await connection.fetchone())
    alchemy = connection if hasattr(connection, "get_raw_connection") else await connection.connection()
    _require_transaction((await alchemy.get_raw_connection()).driver_connection)
    return bool((await alchemy.execute(_on_sqlalchemy(schema), place)).scalar_one())


def _check_kind(connection: object, *, is_async: bool) -> None:
    """Refuse what cannot be asked in this way, before anything is sent on it.

    Raises:
        TypeError: it is of the other kind, async or not; or it is none at all, such as an engine.
    """
    run = getattr(connection, "execute", None)
    is_cursor = callable(run) and callable(getattr(connection, "fetchone", None))
    awaits = inspect.iscoroutinefunction(run)
    kinds = [
        is_sync_connection(connection) or (is_cursor and not awaits),
        is_async_connection(connection) or isinstance(connection, psycopg.AsyncCursor),
    ]
    if kinds[is_async]:
        return
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    if kinds[not is_async]:
        raise TypeError(f"{kind} is for {'accept' if is_async else 'accept_async'}")
    prefix = "Async" * is_async
    raise TypeError(
        f"{kind} is not a connection: give psycopg's {prefix}Connection or {prefix}Cursor,"
        f" SQLAlchemy's {prefix}Connection or {prefix}Session{'' if is_async else ', or a DBAPI cursor'}"
    )


def _on_driver(schema: str) -> str:
    return _statement("%({})s", schema)


def _on_sqlalchemy(schema: str) -> TextClause:
    from sqlalchemy import text

    return text(_statement(":{}", schema))


def _statement(place: str, schema: str) -> str:
    check_schema_name(schema)
    return _CALL.format(schema=schema, **{name: place.format(name) for name in _PLACE})


def _answer(row: Any) -> bool:
    if isinstance(row, bool):  # as a row factory of a cursor may have it
        return row
    return bool(next(iter(row.values())) if isinstance(row, Mapping) else row[0])


def _require_transaction(driver: Any) -> None:
    # The same attributes in psycopg and psycopg2; of other drivers nothing is known.
    info = getattr(driver, "info", None)
    if getattr(driver, "autocommit", False) is True and getattr(info, "transaction_status", None) == _IDLE:
        raise NotInTransaction(
            "accept was called outside a transaction, where it would be committed without the effect",
            hint="Open one around accept and the effect: with connection.transaction()",
        )
