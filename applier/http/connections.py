"""Connections: kept ones to one service, each of which carries one post at a time."""

from __future__ import annotations

import contextlib
import functools
import ssl
import time
from collections import deque
from pathlib import Path
from typing import Any

import httpx2

#: After how long an idle connection is not used again.
IDLE_SECONDS = 15.0
#: How often the files of the trust store are looked at.
TRUST_SECONDS = 5.0


class Connection:
    """A pool of one: a pool walks over all its connections for every request.

    With 200 in flight that is 1.7 ms of CPU a post instead of 0.9 (httpx2 2.16; httpx 0.28: over 15). It is
    also how a post that found its connection closed is repeated on one that is certainly new.
    """

    def __init__(self) -> None:
        self.trust = trust()
        self.transport = httpx2.AsyncHTTPTransport(
            verify=self.trust, limits=httpx2.Limits(max_connections=1, keepalive_expiry=IDLE_SECONDS)
        )
        self.used = False
        self.idle_since = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing came after the answer: it would be read as the answer to the next post.

        So it is after a 204 with a body, a Content-Length that is too small, or two answers to one post.
        """
        pool: Any = self.transport._pool
        try:
            (kept,) = pool.connections
            left, _ = kept._connection._h11_state.trailing_data
        except (AttributeError, ValueError):
            return False  # it is closed, or its parts have other names by now: it is not used again
        return not left

    async def close(self) -> None:
        # Even a close that hangs does not keep the key.
        with contextlib.suppress(Exception):
            await self.transport.aclose()


class Connections:
    """Kept connections to one service, the last used first."""

    def __init__(self) -> None:
        self._idle: deque[Connection] = deque()
        self._closed = False

    async def take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            # It may have to connect again, and trusts whom it trusted when it was made.
            if connection.trust is trust():
                return connection
            await connection.close()
        return Connection()

    async def give_back(self, connection: Connection) -> None:
        if self._closed:
            await connection.close()
            return
        connection.used = True
        connection.idle_since = time.monotonic()
        self._idle.append(connection)

    async def close_idle(self, seconds: float) -> None:
        while self._idle and self._idle[0].idle_since <= time.monotonic() - seconds:
            await self._idle.popleft().close()

    async def close(self) -> None:
        """Close the idle ones now, and those in use when they are given back."""
        self._closed = True
        await self.close_idle(0)


def trust() -> ssl.SSLContext:
    """Return the system's trust: read once, which takes milliseconds, and again when its files change."""
    return _read_trust(_stamps(int(time.monotonic() // TRUST_SECONDS)))


@functools.lru_cache(maxsize=1)
def _stamps(_look: int) -> tuple[tuple[int, ...], ...]:
    paths = ssl.get_default_verify_paths()
    return tuple(_stamp(Path(path)) for path in (paths.cafile, paths.capath) if path)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=1)
def _read_trust(_stamps: tuple[tuple[int, ...], ...]) -> ssl.SSLContext:
    return ssl.create_default_context()
