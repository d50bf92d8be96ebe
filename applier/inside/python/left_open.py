"""What a handler may leave open on its connection, which nothing in the session tells."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

#: Where the driver counts the blocks of `transaction()` that are open.
_BLOCKS = "_num_transactions"


def blocks(connection: psycopg.Connection[Any]) -> int:
    """Return how many blocks of `transaction()` are open."""
    found: int = getattr(connection, _BLOCKS, 0)
    return found


def free(connection: psycopg.Connection[Any], count: int, error: BaseException | None) -> bool:
    """Free a connection of what a handler has left open on it; where that is not possible, close it.

    A `stream` that is not at its end has the connection's lock, for which the next statement would wait for
    ever; a block of `transaction()` would have the driver refuse to end the one around it, and leave it open,
    so that whatever comes later is a part of it. An error remembers both, with the variables of the handler.

    Args:
        count: how many blocks were open before.
        error: what the handler has raised.

    Returns:
        Whether it has left a block open, which the driver counts no longer.
    """
    if connection.closed:
        return False
    if error is not None and (connection.lock.locked() or blocks(connection) != count):
        for each in behind(error):
            traceback.clear_frames(each.__traceback__)
    # Nothing but what has begun it ends a pipeline or a COPY.
    status = connection.pgconn.transaction_status
    if connection.lock.locked() or connection.pgconn.pipeline_status or status == TransactionStatus.ACTIVE:
        connection.close()
    if blocks(connection) == count:
        return False
    setattr(connection, _BLOCKS, count)
    return True


def behind(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that is behind it."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
