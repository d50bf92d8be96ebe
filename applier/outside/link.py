"""SharedConnection: a connection to the database for many coroutines, made again when it is lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeGuard, TypeVar

import psycopg

from inturn.applier import pacing
from inturn.applier.inside.alone import is_transient
from inturn.applier.outside.effect import in_thread
from inturn.applier.process.recovery import Recovery
from inturn.applier.stop import Stop
from inturn.schema.advice import one_line
from inturn.schema.errors import SchemaMismatch
from inturn.schema.version import may_be_upgraded

log = logging.getLogger("inturn.applier")

_T = TypeVar("_T")
_Operation: TypeAlias = Callable[[psycopg.AsyncConnection[Any]], Awaitable[_T]]
#: What was lost against another transaction runs again, after ever longer pauses, so many times.
AGAIN_TIMES = 8
_CHECK_STOP_SECONDS = 0.1


class SharedConnection:
    """Runs statements on one connection in autocommit, one after the other."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
        *,
        stop: Stop,
        drain: bool,
        recovery: Recovery,
        check: Callable[[], None],
        mismatch: Callable[[SchemaMismatch], None],
    ) -> None:
        """Make one, not connected yet.

        Args:
            connect, stop, drain, recovery: as for OutsideWorker.
            check: raises SchemaMismatch where the schema does not fit any more.
            mismatch: told of that, once.
        """
        self._connect = connect
        self._stop = stop
        self._drain = drain
        self._recovery = recovery
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._lock = asyncio.Lock()
        self._busy = asyncio.Lock()
        self._failed_in_a_row = 0
        self._check, self._tell = check, mismatch
        self._mismatch: SchemaMismatch | None = None

    async def run(self, operation: _Operation[_T], *, patient: bool = False, again: bool = True) -> _T:
        """Run an operation, again on a new connection when the database was lost meanwhile.

        An operation that was cut off may have been committed: it must be one that can be repeated.

        Args:
            patient: what is lost with it would be missed: keep trying until the grace time is over, not only
                until a stop is requested.
            again: run it again, for some seconds, when it was lost against another transaction.

        Raises:
            psycopg.Error: the database refused, or it was lost while draining or stopping.
            SchemaMismatch: it refused because the schema was upgraded meanwhile.
        """
        times = 0
        while True:
            connection: psycopg.AsyncConnection[Any] | None = None
            try:
                connection = await self._connected()
                async with self._busy:
                    result = await operation(connection)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if again and is_transient(error) and times < AGAIN_TIMES and not self._ends(patient):
                    await asyncio.sleep(pacing.again_seconds(times))
                    times += 1
                    continue
                if self._ends(patient) or _is_usable(connection):
                    raise
                await self._wait_to_reconnect(error, connection)
            except psycopg.DatabaseError as error:
                if isinstance(error, psycopg.errors.ReadOnlySqlTransaction) and connection is not None:
                    await connection.close()  # to a standby: another server may be the primary by now
                await self._check_after(error)
                raise
            else:
                if self._failed_in_a_row:
                    self._failed_in_a_row = 0
                    self._recovery.succeeded()
                return result

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    def _ends(self, patient: bool) -> bool:
        """Return whether nothing is tried again any more, as the applier ends."""
        return self._stop.expired or (self._stop.requested and not patient)

    async def _check_after(self, error: psycopg.DatabaseError) -> None:
        """Do as inturn.schema.version.check_after."""
        if self._mismatch is None and may_be_upgraded(error):
            try:
                await in_thread(self._check)
            except SchemaMismatch as mismatch:
                self._mismatch = mismatch
                self._tell(mismatch)
            except psycopg.Error:
                return
        if self._mismatch is not None:
            raise self._mismatch from error

    async def _connected(self) -> psycopg.AsyncConnection[Any]:
        async with self._lock:
            if not _is_usable(self._connection):
                self._connection = None
                self._connection = await self._connect()
            return self._connection

    async def _wait_to_reconnect(
        self, error: psycopg.Error, lost: psycopg.AsyncConnection[Any] | None
    ) -> None:
        async with self._lock:
            if self._connection is not lost:
                return  # somebody else has waited, and has a new one
            if self._drain and self._failed_in_a_row >= pacing.DRAIN_RECONNECTS:
                raise error
            seconds = pacing.reconnect_seconds(self._failed_in_a_row)
            self._failed_in_a_row += 1
            reason = one_line(str(error))
            log.warning("lost the database, connecting again in %.1f s: %s", seconds, reason)
            if lost is not None:
                await lost.close()
            self._connection = None
            end_at, seen = time.monotonic() + seconds, self._recovery.times
            while time.monotonic() < end_at and self._recovery.times == seen:
                await asyncio.sleep(_CHECK_STOP_SECONDS)
                if self._stop.requested:
                    return


def _is_usable(connection: psycopg.AsyncConnection[Any] | None) -> TypeGuard[psycopg.AsyncConnection[Any]]:
    return connection is not None and not (connection.closed or connection.broken)
