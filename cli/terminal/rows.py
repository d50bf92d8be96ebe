"""Rows as the commands read them from the database: no value in one stops a command.

Python has no infinite times, and none after the year 9999, and reads neither every number nor every depth of
JSON; a database in SQL_ASCII may hold bytes that are not text. psycopg raises on each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import Connection, sql
from psycopg.adapt import Buffer, Loader
from psycopg.rows import dict_row
from psycopg.types.datetime import IntervalLoader, TimestamptzLoader
from psycopg.types.string import StrDumperUnknown

from inturn.cli.terminal.output import load_payload

Row = dict[str, Any]


class _TimeLoader(TimestamptzLoader):
    """A time; one that never comes is None, as it is where the database has NULL."""

    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            return None  # type: ignore[return-value]


class _SpanLoader(IntervalLoader):
    """A span of time; one without an end, or longer than Python knows, is None."""

    def load(self, data: Buffer) -> timedelta:
        if b"infinity" in bytes(data):
            return None  # type: ignore[return-value]
        try:
            return super().load(data)
        except psycopg.DataError:
            return None  # type: ignore[return-value]


class _TextLoader(Loader):
    """Text; bytes that are not text are kept as Python keeps those of file names."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode("utf-8", "surrogateescape")


class _JsonLoader(Loader):
    """JSON; bytes that are not text are replaced, and what Python does not take stays text."""

    def load(self, data: Buffer) -> Any:
        return load_payload(bytes(data).decode("utf-8", "replace"))


class _TextDumper(StrDumperUnknown):
    """Text, with the bytes that `_TextLoader` kept."""

    def dump(self, obj: str) -> bytes:
        return obj.encode("utf-8", "surrogateescape")


def adapt(connection: Connection[Any]) -> None:
    """Let a connection read every value that the database may hold.

    A time or a span that never ends is None then, as where the database has NULL.
    """
    adapters = connection.adapters
    adapters.register_loader("timestamptz", _TimeLoader)
    adapters.register_loader("interval", _SpanLoader)
    for name in ("json", "jsonb"):
        adapters.register_loader(name, _JsonLoader)
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        # With any other the server refuses to send bytes that are not text.
        connection.execute("SET client_encoding = 'SQL_ASCII'")
        for name in ("text", "varchar", "name"):
            adapters.register_loader(name, _TextLoader)
        adapters.register_dumper(str, _TextDumper)


def fetch(
    connection: Connection[Any],
    query: sql.Composed | sql.SQL,
    parameters: Sequence[object] | Mapping[str, object] | None = None,
) -> list[Row]:
    """Run a query and return its rows, each by the names of its columns."""
    return connection.cursor(row_factory=dict_row).execute(query, parameters).fetchall()


def load_time(text: str) -> datetime | None:
    """Return a time that stands in JSON, in UTC; None for one that never comes."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def clock(connection: Connection[Any]) -> datetime:
    """Return the database's time."""
    (row,) = connection.execute("SELECT clock_timestamp()").fetchall()
    time: datetime = row[0]
    return time
