"""The session that a wait asks in: the caller's own, or another one of its engine's pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from inturn.outbox import bounded
from inturn.outbox.bounded import Guard, connected, connected_async
from inturn.outbox.one_wait import (
    CanListen,
    Ear,
    Fetch,
    Listen,
    OneWait,
    Sleep,
    errors_of,
    in_transaction,
    refuse_transaction,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from inturn.outbox.appending import AnyAsyncConnection, SyncConnection
    from inturn.outbox.one_wait import Step

# A pooler tells its clients another backend than the one that they have. Where the caller listens to
# something, its notifications would be taken from it. And a standby knows no LISTEN.
_CAN_LISTEN = """SELECT pg_backend_pid() = %s AND NOT EXISTS (SELECT FROM pg_listening_channels())
    AND current_setting('transaction_read_only') = 'off'"""


class WaitSession(Protocol):
    """What does the steps of a wait."""

    def do(self, step: Step) -> Any:
        """Do a step, and return its answer."""


class AsyncWaitSession(Protocol):
    """The same for an event loop."""

    async def do(self, step: Step) -> Any:
        """Do a step, and return its answer."""


@contextmanager
def opened(connection: SyncConnection, task: OneWait) -> Iterator[WaitSession]:
    """Give the session for a wait; afterwards the connection is as it was.

    Raises:
        WrongIsolation: the connection is in a transaction.
    """
    if isinstance(connection, psycopg.Connection):
        refuse_transaction(in_transaction(connection), task)
        guard = Guard(connection, task.remaining() + bounded.ANSWER_SECONDS)
        with errors_of(task, guard), guard:
            session = _Listening(connection)
            try:
                yield session
            finally:
                session.close()
        return
    from sqlalchemy import Engine  # whose it is: see drivers
    from sqlalchemy.orm import Session, scoped_session

    if isinstance(connection, scoped_session):
        registered: Session = connection()
        with opened(registered, task) as other:
            yield other
        return
    refuse_transaction(connection.in_transaction(), task)
    if isinstance(connection, Session):
        bind = connection.get_bind()
        if isinstance(bind, Engine):
            with connected(bind, task) as own, opened(own, task) as other:
                yield other
            return
        connection = bind
        refuse_transaction(connection.in_transaction(), task)
    driver = connection.connection.driver_connection
    if isinstance(driver, psycopg.Connection):
        with opened(driver, task) as other:
            yield other
    else:
        with errors_of(task):
            yield _Deaf(connection)


class _Listening(Ear):
    """psycopg's connection, in autocommit meanwhile."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__(autocommit=connection.autocommit)
        self._connection = connection
        if not self._autocommit:
            connection.autocommit = True

    def do(self, step: Step) -> Any:
        match step:
            case Fetch():
                return self._execute(step.written("%({})s").encode(), step.parameters)
            case CanListen():
                return self._execute(_CAN_LISTEN.encode(), [self._connection.info.backend_pid])[0]
            case Listen():
                if step.channel != self._channel:
                    self._channel = step.channel
                    self._execute(sql.SQL("LISTEN {}").format(sql.Identifier(step.channel)))
            case Sleep():
                self._sleep(step)
        return None

    def _sleep(self, step: Sleep) -> None:
        began_at = time.monotonic()
        if self._channel is None:
            time.sleep(step.seconds)
            return
        # What came with an answer may lie in libpq, where nobody waits for it.
        while self._connection.pgconn.notifies():
            self._heard = True
        if not self._heard:
            for _ in self._connection.notifies(timeout=step.seconds, stop_after=1):
                pass
        self._heard = False
        time.sleep(max(step.least - (time.monotonic() - began_at), 0))

    def _execute(self, query: bytes | sql.Composed, parameters: Any = None) -> Any:
        # A cursor of our own: the connection's row factory may make anything of a row.
        cursor = psycopg.Cursor(self._connection, row_factory=tuple_row)
        with self._hearing(self._connection), cursor:
            cursor.execute(query, parameters, prepare=False)
            return cursor.fetchone() if cursor.description else None

    def close(self) -> None:
        try:
            with suppress(psycopg.Error):  # it is lost, which its user is told anyway
                if self._channel is not None:
                    self._execute(sql.SQL("UNLISTEN {}").format(sql.Identifier(self._channel)))
                    while self._connection.pgconn.notifies():
                        pass
        finally:
            # Whatever cut the above off: an append that follows is to be in a transaction again.
            if not self._autocommit:
                with suppress(psycopg.Error):
                    self._connection.autocommit = False


class _Deaf:
    """SQLAlchemy's connection with another driver than psycopg."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def do(self, step: Step) -> Any:
        match step:
            case Fetch():
                from sqlalchemy import text

                with self._connection.begin():
                    return self._connection.execute(text(step.written(":{}")), step.parameters).one()
            case Sleep():
                time.sleep(step.seconds)
        return False


@asynccontextmanager
async def opened_async(connection: AnyAsyncConnection, task: OneWait) -> AsyncIterator[AsyncWaitSession]:
    """Do as `opened`, for the running event loop."""
    if isinstance(connection, psycopg.AsyncConnection):
        refuse_transaction(in_transaction(connection), task)
        later = asyncio.get_running_loop().call_later
        guard = Guard(connection, task.remaining() + bounded.ANSWER_SECONDS, later)
        with errors_of(task, guard), guard:
            session = _AsyncListening(connection)
            try:
                await session.open()
                yield session
            finally:
                await session.close()
        return
    from sqlalchemy import Engine

    # Needs greenlet when it is imported, which only its users install.
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session

    if isinstance(connection, async_scoped_session):
        registered: AsyncSession = connection()
        async with opened_async(registered, task) as other:
            yield other
        return
    refuse_transaction(connection.in_transaction(), task)
    if isinstance(connection, AsyncSession):
        bind = connection.get_bind()
        if isinstance(bind, Engine):
            async with connected_async(AsyncEngine(bind), task) as own, opened_async(own, task) as other:
                yield other
            return
        connection = AsyncConnection(AsyncEngine(bind.engine), bind)
        refuse_transaction(connection.in_transaction(), task)
    driver = (await connection.get_raw_connection()).driver_connection
    if isinstance(driver, psycopg.AsyncConnection):
        async with opened_async(driver, task) as other:
            yield other
    else:
        with errors_of(task):
            yield _AsyncDeaf(connection)


class _AsyncListening(Ear):
    """psycopg's connection, in autocommit meanwhile; see _Listening."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(autocommit=connection.autocommit)
        self._connection = connection

    async def open(self) -> None:
        if not self._autocommit:
            await self._connection.set_autocommit(True)

    async def do(self, step: Step) -> Any:
        match step:
            case Fetch():
                return await self._execute(step.written("%({})s").encode(), step.parameters)
            case CanListen():
                found = await self._execute(_CAN_LISTEN.encode(), [self._connection.info.backend_pid])
                return found[0]
            case Listen():
                if step.channel != self._channel:
                    self._channel = step.channel
                    await self._execute(sql.SQL("LISTEN {}").format(sql.Identifier(step.channel)))
            case Sleep():
                await self._sleep(step)
        return None

    async def _sleep(self, step: Sleep) -> None:
        began_at = time.monotonic()
        if self._channel is None:
            await asyncio.sleep(step.seconds)
            return
        while self._connection.pgconn.notifies():
            self._heard = True
        if not self._heard:
            async for _ in self._connection.notifies(timeout=step.seconds, stop_after=1):
                pass
        self._heard = False
        await asyncio.sleep(max(step.least - (time.monotonic() - began_at), 0))

    async def _execute(self, query: bytes | sql.Composed, parameters: Any = None) -> Any:
        with self._hearing(self._connection):
            async with psycopg.AsyncCursor(self._connection, row_factory=tuple_row) as cursor:
                await cursor.execute(query, parameters, prepare=False)
                return await cursor.fetchone() if cursor.description else None

    async def close(self) -> None:
        try:
            with suppress(psycopg.Error):
                if self._channel is not None:
                    await self._execute(sql.SQL("UNLISTEN {}").format(sql.Identifier(self._channel)))
                    while self._connection.pgconn.notifies():
                        pass
        finally:
            # Whatever cut the above off, such as a cancel: see _Listening.
            if not self._autocommit:
                with suppress(psycopg.Error):
                    await self._connection.set_autocommit(False)


class _AsyncDeaf:
    """SQLAlchemy's connection with another driver than psycopg, as asyncpg."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def do(self, step: Step) -> Any:
        match step:
            case Fetch():
                from sqlalchemy import text

                async with self._connection.begin():
                    found = await self._connection.execute(text(step.written(":{}")), step.parameters)
                    return found.one()
            case Sleep():
                await asyncio.sleep(step.seconds)
        return False
