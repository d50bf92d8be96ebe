"""OutsideWorker: applies commands outside the database, many keys at a time, each held by a lease."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg

from inturn.applier.breaker import Breaker
from inturn.applier.command import ClaimedCommand
from inturn.applier.inside.hand import MOST_ABANDONED, TooManyAbandoned
from inturn.applier.metrics.tallies import Tallies
from inturn.applier.outside.keeper import keep_leases
from inturn.applier.outside.lanes import CLEAN_UP_SECONDS, Lanes, OutsideTarget
from inturn.applier.outside.leases import Leases
from inturn.applier.outside.link import SharedConnection
from inturn.applier.outside.loop import WorkLoop
from inturn.applier.outside.recorder import Recorder
from inturn.applier.outside.rounds import CHECK_STOP_SECONDS, OutsideRounds
from inturn.applier.outside.turns import OutsideTurns
from inturn.applier.process.recovery import Recovery
from inturn.applier.process.totals import Totals, ended_by
from inturn.applier.stop import LoopBell, Stop
from inturn.schema.errors import InturnError, SchemaMismatch
from inturn.schema.version import check_version

log = logging.getLogger("inturn.applier")


class OutsideWorker:
    """One process's work outside the database. `run` is what a thread runs.

    Args:
        connect, choose: as for Worker; the connection is for choosing alone.
        connect_async: gives a connection in autocommit with isolation level READ COMMITTED, for the work.
        applier_id: who has the leases.
        schema: where inturn is installed.
        drain: stop when nothing is ready, rather than wait for more.
        stop: shared with the other workers of the process.
        bell: rung when keys may have turned ready.
        others_run: whether there is work that may append more; a drain waits for its end.
        recovery, tallies: shared with the other workers of the process.
    """

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        connect_async: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
        choose: Callable[[psycopg.Connection[Any]], Sequence[OutsideTarget]],
        *,
        applier_id: str,
        schema: str,
        drain: bool,
        stop: Stop,
        bell: LoopBell,
        others_run: Callable[[], bool],
        recovery: Recovery | None = None,
        tallies: Tallies | None = None,
    ) -> None:
        self._connect, self._connect_async, self._schema = connect, connect_async, schema
        self._lanes = Lanes(connect, choose, drain=drain)
        self._leases = Leases(schema, applier_id)
        self._drain = drain
        self._stop = stop
        self._bell = bell
        self._others_run = others_run
        self._recovery = recovery or Recovery()
        self._tallies = tallies or Tallies()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.totals = Totals()
        #: How many handlers, of threads and coroutines, were abandoned because they do not return, and go on.
        self.abandoned = 0
        #: Why the worker ended before it should have; None while it runs and after a good end.
        self.error: Exception | None = None

    def run(self) -> None:
        """Apply until stopped, or with drain until nothing is ready. Never raises: see `error`."""
        loop = WorkLoop()
        self._loop = loop
        try:
            loop.run_until_complete(self._main())
        except InturnError as error:
            self.error = error
        except BaseException as error:
            # After a stop a database that is lost is no news: leases run out. Anything else is.
            if not (isinstance(error, psycopg.Error) and self._stop.requested):
                self.error = self.error or ended_by(error)
            if not isinstance(error, psycopg.Error):
                with suppress(Exception):  # a log that fails may be what has ended it
                    log.exception("worker failed")
        finally:
            self._loop = None
            loop.run_until_complete(_end_tasks())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def cancel(self) -> None:
        """Cut off what is in flight."""
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._lanes.cut_all)
            except RuntimeError:
                return  # has ended meanwhile

    async def _main(self) -> None:
        self._bell.attach(asyncio.get_running_loop())
        link = SharedConnection(
            self._connect_async,
            stop=self._stop,
            drain=self._drain,
            recovery=self._recovery,
            check=self._check_schema,
            mismatch=self._end_at,
        )
        recorder = Recorder(self._leases, link)
        helpers = [
            asyncio.create_task(recorder.run()),
            asyncio.create_task(keep_leases(self._lanes.works, recorder)),
        ]
        try:
            try:
                await self._rounds(link, recorder, helpers).serve_on()
            except SchemaMismatch as error:
                self._end_at(error)
            await self._finish(helpers)
        finally:
            self._bell.detach()
            self._lanes.cut_all()
            tasks = [*helpers, *(work.task for work in self._lanes.works() if work.task is not None)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._lanes.close()
            await link.close()
            self._lanes.close_connection()
            # A closed transport lets go of its socket a round of the loop later.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _check_schema(self) -> None:
        with self._connect() as connection:
            check_version(connection, self._schema)

    def _end_at(self, error: SchemaMismatch) -> None:
        """End at another revision: what is in hand ends as at a stop; leases are given back if they can."""
        self.error = error
        self._stop.request()

    def _rounds(
        self, link: SharedConnection, recorder: Recorder, helpers: list[asyncio.Task[None]]
    ) -> OutsideRounds:
        turns = OutsideTurns(
            self._leases,
            link,
            recorder,
            stop=self._stop,
            bell=self._bell,
            totals=self.totals,
            tallies=self._tallies,
            give_up=self._give_up,
        )
        return OutsideRounds(
            self._lanes,
            self._leases,
            link,
            turns.take,
            drain=self._drain,
            stop=self._stop,
            bell=self._bell,
            others_run=self._others_run,
            check_helpers=functools.partial(_raise_ended, helpers),
            tallies=self._tallies,
        )

    @property
    def breakers(self) -> dict[str, Breaker]:
        """The breaker of each topic."""
        return self._lanes.breakers

    def _give_up(self, order: ClaimedCommand) -> None:
        """Count a handler that is abandoned, because it cannot be ended: in a thread, or a coroutine."""
        self.abandoned += 1
        if self.abandoned >= MOST_ABANDONED:
            self.error = TooManyAbandoned(self.abandoned)
            self._stop.request()
        log.warning(
            "a handler that does not return was abandoned", extra={"topic": order.topic, "key": order.key}
        )

    async def _finish(self, helpers: list[asyncio.Task[None]]) -> None:
        """Wait for what is in flight, until it is cut off."""
        while works := self._lanes.works():
            _raise_ended(helpers)
            if self._stop.expired:
                self._lanes.cut_all()
            await asyncio.wait(
                [work.task for work in works if work.task is not None], timeout=CHECK_STOP_SECONDS
            )
            if self._stop.expired and not any(work.at_work for work in self._lanes.works()):
                await asyncio.wait(
                    [work.task for work in self._lanes.works() if work.task is not None] or [_nothing()],
                    timeout=2.0,
                )
                return


async def _noop() -> None: ...


def _nothing() -> asyncio.Task[None]:
    return asyncio.create_task(_noop())


def _raise_ended(helpers: list[asyncio.Task[None]]) -> None:
    for task in helpers:
        if task.done():
            task.result()


async def _end_tasks() -> None:
    """Cancel what handlers have left on the loop, as a pool of connections; let it clean up for a while."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=CLEAN_UP_SECONDS)
