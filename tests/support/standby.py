"""A standby: a server that takes no writes, and has no unlogged tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from support.server import Server


@contextmanager
def standby(primary: Server) -> Iterator[Server]:
    """Give one with all that a server holds, which is stopped for it."""
    primary.stop()
    own = Server(primary.version, standby_of=primary)
    own.start()
    try:
        yield own
    finally:
        own.remove()
