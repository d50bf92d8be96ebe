"""How a wait keeps to its time when the database does not: it gives up connecting, and an answer."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, TypeVar

import psycopg

if TYPE_CHECKING:
    # See drivers; and asyncio's needs greenlet when it is imported, which only its users install.
    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from inturn.outbox.one_wait import OneWait

#: How long an answer may take that is under way when the time of a wait is over, in seconds.
ANSWER_SECONDS = 5.0
_NO_CONNECTION = "no connection to the database was made in time"


class _Closable(Protocol):
    def close(self) -> object: ...


class _Cancellable(Protocol):
    def cancel(self) -> object: ...


#: Calls a function after that many seconds, unless what it returns is cancelled before.
Later: TypeAlias = Callable[[float, Callable[[], None]], _Cancellable]
_T = TypeVar("_T", bound=_Closable)


def made_within(seconds: float, connect: Callable[[], _T]) -> _T:
    """Return the connection that a call makes; what the call raises is raised.

    Raises:
        TimeoutError: it takes longer. It goes on in a thread, which closes the connection once it is made.
    """
    made: list[_T] = []
    failed: list[BaseException] = []
    lock, is_over = threading.Lock(), threading.Event()

    def run() -> None:
        try:
            connection = connect()
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)
            return
        with lock:
            if not is_over.is_set():
                made.append(connection)
                return
        connection.close()

    thread = threading.Thread(target=run, name="inturn-connect", daemon=True)
    thread.start()
    try:
        thread.join(min(max(seconds, 0), threading.TIMEOUT_MAX))
    finally:
        with lock:
            is_over.set()
    if failed:
        raise failed[0]
    if not made:
        raise TimeoutError
    return made[0]


def connected(engine: Engine, task: OneWait) -> Connection:
    """Return a connection of the engine's pool; also where the time is short, there is some for it.

    Raises:
        WaitTimedOut: it is over.
    """
    try:
        return made_within(max(task.remaining(), ANSWER_SECONDS), engine.connect)
    except TimeoutError:
        raise task.timed_out(_NO_CONNECTION) from None


@asynccontextmanager
async def connected_async(engine: AsyncEngine, task: OneWait) -> AsyncIterator[AsyncConnection]:
    """Give what `connected` returns for a block."""
    seconds = max(task.remaining(), ANSWER_SECONDS)
    try:
        async with asyncio.timeout(seconds if seconds < math.inf else None) as limit:
            connection = await engine.connect()
    except TimeoutError:
        if not limit.expired():
            raise
        raise task.timed_out(_NO_CONNECTION) from None
    try:
        yield connection
    finally:
        await connection.close()


class Guard:
    """Breaks a connection of psycopg off when the time is over: whoever waits for an answer gets an error.

    Attributes:
        struck: whether it has.
    """

    def __init__(
        self,
        connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any],
        seconds: float,
        later: Later | None = None,
    ) -> None:
        """Make one; it guards within its block.

        Args:
            seconds: from now on; infinity: for ever.
            later: None: by a thread.
        """
        self.struck = False
        self._connection = connection
        self._seconds = seconds
        self._later = later or _later_in_thread
        self._lock = threading.Lock()
        self._is_over = False
        self._alarm: _Cancellable | None = None

    def __enter__(self) -> Self:
        if self._seconds < math.inf:
            self._alarm = self._later(max(self._seconds, 0), self._strike)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._is_over = True
        if self._alarm is not None:
            self._alarm.cancel()

    def _strike(self) -> None:
        with self._lock, suppress(OSError, psycopg.Error):  # it is lost already
            if self._is_over:
                return
            self.struck = True
            # The descriptor stays the driver's, which closes it once it has noticed.
            with socket.fromfd(self._connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
                same.shutdown(socket.SHUT_RDWR)


def _later_in_thread(seconds: float, call: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), call)
    timer.daemon = True
    timer.start()
    return timer
