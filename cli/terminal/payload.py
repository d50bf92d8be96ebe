"""A payload as it is typed: read, and refused in words that the user of a shell understands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from inturn.cli.errors import Failure
from inturn.schema.errors import PayloadRefused

_MOST_BYTES = 64 * 1024 * 1024
_NO_JSON = "22P02"
# JSON, but not for jsonb: \u0000, a lone surrogate, too deep, too large.
_NOT_STORABLE = (_NO_JSON, "22P05", "22021", "54001", "54000", "22003")


def read_payload(text: str) -> str:
    """Return the payload as it was typed; for - what standard input gives.

    Raises:
        Failure: that is more than any topic takes.
    """
    if text != "-":
        return text
    # What never ends is not read to the end.
    read = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if len(read) > _MOST_BYTES:
        raise Failure(
            f"the payload on standard input has over {_MOST_BYTES:,} bytes, which no topic takes",
            hint="Store the large part elsewhere and append a reference to it",
        )
    return read.decode()


@contextmanager
def storable(topic: str, key: str) -> Iterator[None]:
    """Say what PostgreSQL has against a payload that the block gives it.

    Raises:
        PayloadRefused: it is not JSON that can be stored.
    """
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate not in _NOT_STORABLE or "has no equivalent in encoding" in str(error):
            raise  # of the last nothing tells which part of the command it is about
        why = error.diag.message_detail or error.diag.message_primary or str(error)
        raise PayloadRefused(
            f"the payload is not JSON that PostgreSQL can store: {why}",
            hint="""In a shell it takes quotes: '{"amount": 3}'""" if error.sqlstate == _NO_JSON else "",
            topic=topic,
            key=key,
        ) from error
