"""Poolers: how a connection through one is told, and that one without transactions is refused."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from inturn.schema.errors import from_database

_pooled: weakref.WeakSet[psycopg.Connection[Any] | psycopg.AsyncConnection[Any]] = weakref.WeakSet()


def is_pooled(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Return whether a connection that inturn has opened goes through a pooler, as far as can be told.

    A pooler tells its clients another backend than the one that they have, in every mode. Each transaction
    may have another session then, which other clients use too.
    """
    return connection in _pooled


def look(connection: psycopg.Connection[Any], pinned: tuple[Any, ...] | None) -> None:
    """Note that a connection goes through a pooler, where it does, and have the driver prepare nothing on it.

    Args:
        pinned: the row that `connection.pins` gave.

    Raises:
        StatementPooling: the pooler has no transactions.
        psycopg.Error: the connection is lost.
    """
    if _note(connection, pinned):
        with _errors(), connection.transaction():
            pass


async def look_async(connection: psycopg.AsyncConnection[Any], pinned: tuple[Any, ...] | None) -> None:
    """Do as `look`."""
    if _note(connection, pinned):
        with _errors():
            async with connection.transaction():
                pass


def _note(
    connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], pinned: tuple[Any, ...] | None
) -> bool:
    if pinned is None or pinned[-1] is not None:
        return False
    _pooled.add(connection)
    # What one session has prepared the next one does not know.
    connection.prepare_threshold = None
    return True


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise from_database(error) or error from None
