"""Call: a statement, its parameters, and how its rows are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, LiteralString, TypeAlias, TypeVar

import psycopg
from psycopg import sql

T = TypeVar("T")
Rows: TypeAlias = list[tuple[Any, ...]]

#: What a session's settings are known by: of PostgreSQL's hundreds, those on which handlers depend most.
#: It costs a few microseconds a claim. Not statement_timeout, which `limit` sets for a transaction.
_SETTINGS: LiteralString = (
    "pg_catalog.concat_ws('|', session_user, current_user, "
    + ", ".join(
        f"pg_catalog.current_setting('{name}')"
        for name in (
            *("search_path", "DateStyle", "IntervalStyle", "TimeZone", "session_replication_role"),
            *("lock_timeout", "idle_in_transaction_session_timeout"),
            *("default_transaction_isolation", "default_transaction_read_only", "synchronous_commit"),
        )
    )
    # Of inturn's own, those that an applier heeds.
    + ", coalesce(pg_catalog.current_setting('inturn.max_claim_octets', true), '')"
    + ", coalesce(pg_catalog.current_setting('inturn.notify', true), ''))"
)

#: What tells one run of a server from any other. Not as a time, which the session's TimeZone writes.
_SERVER: LiteralString = "extract(epoch FROM pg_catalog.pg_postmaster_start_time())::pg_catalog.text"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A statement that returns rows; synchronous and asynchronous connections run the same one.

    Attributes:
        read: makes the result from its rows.
    """

    query: sql.Composed
    parameters: Sequence[Any]
    read: Callable[[Rows], T]

    def on(self, connection: psycopg.Connection[Any] | psycopg.Cursor[Any]) -> T:
        """Run it, and return what it says.

        Raises:
            psycopg.Error: the connection or the database failed, or the database refused.
        """
        return self.read(connection.execute(self.query, self.parameters).fetchall())

    async def on_async(self, connection: psycopg.AsyncConnection[Any]) -> T:
        """Do as `on`."""
        cursor = await connection.execute(self.query, self.parameters)
        return self.read(await cursor.fetchall())


def statement(text: LiteralString, schema: str = "") -> sql.Composed:
    """Return a statement; {schema} is where inturn is installed, for {settings} and {server} see above."""
    return sql.SQL(text).format(
        schema=sql.Identifier(schema), settings=sql.SQL(_SETTINGS), server=sql.SQL(_SERVER)
    )


def all_as(make: Callable[..., T]) -> Callable[[Rows], list[T]]:
    """Return what makes something of each row."""
    return lambda rows: [make(*row) for row in rows]


def one_as(make: Callable[..., T]) -> Callable[[Rows], T]:
    """Return what makes something of the only row."""
    return lambda rows: make(*rows[0])


def first_as(make: Callable[..., T]) -> Callable[[Rows], T | None]:
    """Return what makes something of the first row; None when there is none."""
    return lambda rows: make(*rows[0]) if rows else None


def value(rows: Rows) -> Any:
    """Return the only value."""
    return rows[0][0]


def first_value(rows: Rows) -> Any:
    """Return the first value; None when there is none."""
    return rows[0][0] if rows else None


def seconds(rows: Rows) -> float | None:
    """Return the only value as a length of time from now; None where it is NULL."""
    return None if rows[0][0] is None else max(float(rows[0][0]), 0.0)


def nothing(_rows: Rows) -> None:
    """Return nothing, of a statement that is run for what it does."""
