"""OutsideWorker: applies commands outside the database, many keys at a time, each held by a lease."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg

from inturn.applier import pacing
from inturn.applier.breaker import Breaker, TargetDown
from inturn.applier.command import Order
from inturn.applier.inside.hand import MOST_ABANDONED, TooManyAbandoned
from inturn.applier.outside.effect import in_thread
from inturn.applier.outside.keeper import keep_leases
from inturn.applier.outside.lanes import Lane, OutsideTarget, Work
from inturn.applier.outside.leases import Leases
from inturn.applier.outside.link import Link
from inturn.applier.outside.recorder import Recorder
from inturn.applier.outside.turns import OutsideTurns
from inturn.applier.process.recovery import Recovery
from inturn.applier.process.totals import Totals, ended_by
from inturn.applier.stop import LoopBell, Stop
from inturn.schema.errors import InturnError, UnknownTopic

log = logging.getLogger("inturn.applier")

#: The most keys of one claim: its transaction stays far below a second.
CLAIM_KEYS = 50
#: No more is claimed while the payloads in hand are as long: a claim brings as much again, and no more.
PAYLOADS_IN_HAND = 16 * 1024 * 1024
#: The wait after the database refused.
REFUSED_SECONDS = 1.0
_CHECK_STOP_SECONDS = 0.25
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class OutsideWorker:
    """One process's work outside the database. `run` is what a thread runs."""

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
    ) -> None:
        """Make a worker.

        Args:
            connect, choose: as for Worker; the connection is for choosing alone.
            connect_async: gives a connection in autocommit with isolation level READ COMMITTED, for the work.
            applier_id: who has the leases.
            schema: where inturn is installed.
            drain: stop when nothing is ready, rather than wait for more.
            stop: shared with the other workers of the process.
            bell: rung when keys may have turned ready.
            others_run: whether there is work that may append more; a drain waits for its end.
            recovery: shared with the other workers of the process.
        """
        self._connect = connect
        self._connect_async = connect_async
        self._choose = choose
        self._leases = Leases(schema, applier_id)
        self._drain = drain
        self._stop = stop
        self._bell = bell
        self._others_run = others_run
        self._recovery = recovery or Recovery()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lanes: dict[str, Lane] = {}
        self._seeing: psycopg.Connection[Any] | None = None
        self._chosen_at = 0.0
        self.totals = Totals()
        #: How many handlers that do not return were given up, in threads that go on.
        self.abandoned = 0
        #: Why the worker ended before it should have; None while it runs and after a good end.
        self.error: Exception | None = None

    def run(self) -> None:
        """Apply until stopped, or with drain until nothing is ready. Never raises: see `error`."""
        loop = _Loop()
        self._loop = loop
        try:
            loop.run_until_complete(self._main())
        except InturnError as error:
            self.error = error
        except BaseException as error:
            if not self._stop.requested:
                if not isinstance(error, psycopg.Error):
                    log.exception("worker failed")
                self.error = ended_by(error)
        finally:
            self._loop = None
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def cancel(self) -> None:
        """Cut off what is in flight."""
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._cut_all)
            except RuntimeError:
                return  # has ended meanwhile

    async def _main(self) -> None:
        self._bell.attach(asyncio.get_running_loop())
        self._link = Link(self._connect_async, stop=self._stop, drain=self._drain, recovery=self._recovery)
        self._recorder = Recorder(self._leases, self._link)
        self._turns = OutsideTurns(
            self._leases,
            self._link,
            self._recorder,
            stop=self._stop,
            bell=self._bell,
            totals=self.totals,
            give_up=self._give_up,
        )
        helpers = [
            asyncio.create_task(self._recorder.run()),
            asyncio.create_task(keep_leases(self._works, self._recorder)),
        ]
        try:
            await self._serve_on(helpers)
            await self._finish(helpers)
        finally:
            self._bell.detach()
            self._cut_all()
            tasks = [*helpers, *(work.task for work in self._works() if work.task is not None)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for lane in self._lanes.values():
                await lane.effect.close()
            await self._link.close()
            if self._seeing is not None:
                self._seeing.close()
            # A closed transport lets go of its socket a round of the loop later.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _works(self) -> list[Work]:
        return [work for lane in self._lanes.values() for work in lane.in_flight]

    @property
    def breakers(self) -> dict[str, Breaker]:
        """The breaker of each topic."""
        return {topic: lane.breaker for topic, lane in list(self._lanes.items())}

    @property
    def _laden(self) -> bool:
        """Whether the payloads in hand are so long that no more is claimed."""
        return sum(work.lease.size for work in self._works()) >= PAYLOADS_IN_HAND

    def _cut_all(self) -> None:
        for work in self._works():
            work.cut()

    # Which keys.

    async def _serve_on(self, helpers: list[asyncio.Task[None]]) -> None:
        """Serve, again after a while when the database refused."""
        while not self._stop.requested:
            try:
                return await self._serve(helpers)
            except psycopg.Error as error:
                if self._stop.requested:
                    return None
                if self._drain:
                    raise
                log.warning("the database refused, trying again: %s", " ".join(str(error).split()))
            await in_thread(functools.partial(self._stop.wait, REFUSED_SECONDS))
        return None

    async def _serve(self, helpers: list[asyncio.Task[None]]) -> None:
        poll_seconds = pacing.FIRST_POLL_SECONDS
        self._chosen_at = -pacing.CHOOSE_SECONDS
        while not self._stop.requested:
            _raise_ended(helpers)
            if time.monotonic() - self._chosen_at > pacing.CHOOSE_SECONDS:
                await self._take_up()
            if await self._claim_round():
                poll_seconds = pacing.FIRST_POLL_SECONDS
                continue
            open_lanes = [lane for lane in self._lanes.values() if lane.room and not self._laden]
            due = None
            if self._drain and await self._is_drained():
                return
            if open_lanes:
                topics = [lane.topic for lane in open_lanes]
                looked_at = await self._link.run(
                    functools.partial(self._leases.announce_sleep, topics=topics)
                )
                # Looks once more: a key that became ready before the announcement notified nobody.
                if await self._claim_round(open_lanes):
                    poll_seconds = pacing.FIRST_POLL_SECONDS
                    continue
                due = await self._link.run(
                    functools.partial(self._leases.seconds_to_next_ready, topics=topics, since=looked_at)
                )
            if await self._sleep(poll_seconds, due):
                poll_seconds = pacing.FIRST_POLL_SECONDS
            else:
                poll_seconds = pacing.next_poll(poll_seconds)

    async def _sleep(self, poll_seconds: float, due: float | None) -> bool:
        """Sleep until keys may be ready; return whether that was heard, rather than polled."""
        probes = [lane.breaker.seconds_to_probe() for lane in self._lanes.values() if not lane.in_flight]
        ends = [poll_seconds, due, *probes]
        end_at = time.monotonic() + min(seconds for seconds in ends if seconds is not None)
        while not self._stop.requested:
            seconds = min(end_at - time.monotonic(), _CHECK_STOP_SECONDS)
            if seconds <= 0:
                break
            if await self._bell.wait(seconds):
                rung = self._bell.rung()
                if rung:
                    break
                if self._drain:
                    break  # nobody listens, so what a key that was let go has pending is not heard of
                if any(lane.look and lane.room for lane in self._lanes.values()):
                    return True
        else:
            return False
        for lane in self._lanes.values():
            lane.look = True
        return time.monotonic() < end_at

    async def _claim_round(self, lanes: Sequence[Lane] | None = None) -> bool:
        """Take up ready keys where there is room; return whether there were any."""
        found = False
        for lane in list(self._lanes.values()) if lanes is None else lanes:
            wanted = min(lane.room, CLAIM_KEYS)
            if not wanted or self._laden or self._stop.requested or (lanes is None and not lane.look):
                continue
            probe = lane.breaker.open
            try:
                leases = await self._link.run(
                    functools.partial(self._leases.claim, topic=lane.topic, max_keys=wanted)
                )
            except psycopg.DatabaseError as error:
                if error.sqlstate != UnknownTopic.sqlstate:
                    raise
                self._chosen_at = -pacing.CHOOSE_SECONDS
                lane.served = False
                continue
            # Fewer may be because a key had nothing to apply, or was held at last: only none is none.
            lane.look = bool(leases)
            for lease in leases:
                work = Work(lease, probe)
                lane.in_flight.add(work)
                work.task = asyncio.create_task(self._turns.take(lane, work))
            found = found or bool(leases)
        return found

    async def _is_drained(self) -> bool:
        """Return whether nothing is ready, nothing in flight, and nobody at work who may append more.

        Raises:
            TargetDown: that is so but for a topic whose service does not answer.
        """
        lanes = self._lanes.values()
        if (
            self._works()
            or self._others_run()
            or any(
                (lane.look and lane.room) or (lane.breaker.open and not lane.room and not lane.breaker.probed)
                for lane in lanes
            )
        ):
            return False
        down = [lane.topic for lane in lanes if lane.breaker.open and not lane.room]
        if down:
            left = functools.partial(self._leases.seconds_to_next_ready, topics=down, since=_LONG_AGO)
            if await self._link.run(left) == 0:
                raise TargetDown(
                    f"topic {down[0]!r} was not drained: its target does not answer",
                    hint="Its keys stay as they are; see inturn keys --retrying",
                    topic=down[0],
                )
        return True

    async def _take_up(self) -> None:
        targets = await in_thread(self._see)
        if targets is None:
            self._chosen_at = time.monotonic()
            return
        there = {target.topic: target for target in targets}
        for topic, lane in self._lanes.items():
            lane.served = topic in there
        for topic, target in there.items():
            known = self._lanes.get(topic)
            if known is None:
                breaker = Breaker(topic)
                self._lanes[topic] = Lane(
                    topic, target.limit, target.settings, target.effect, breaker, timeout=target.timeout
                )
                continue
            known.limit, known.timeout = target.limit, target.timeout
            if known.settings != target.settings:
                # What is in flight ends as it began.
                old, known.effect, known.settings = known.effect, target.effect, target.settings
                known.breaker = Breaker(topic)
                known.look = True
                await old.close()
        for lane in self._lanes.values():
            await lane.effect.tidy()
        self._chosen_at = time.monotonic()

    def _see(self) -> Sequence[OutsideTarget] | None:
        """Ask which topics there are, in a thread; None when the database cannot be reached just now."""
        try:
            if self._seeing is None or self._seeing.closed or self._seeing.broken:
                self._seeing = self._connect()
            return self._choose(self._seeing)
        except (psycopg.OperationalError, psycopg.InterfaceError):
            if self._drain:
                raise
            # The link says so, and waits.
            if self._seeing is not None:
                self._seeing.close()
            return None

    def _give_up(self, order: Order) -> None:
        """Count a thread that is left behind, because it cannot be ended."""
        self.abandoned += 1
        if self.abandoned >= MOST_ABANDONED:
            self.error = TooManyAbandoned(self.abandoned)
            self._stop.request()
        log.warning(
            "a handler that does not return was given up", extra={"topic": order.topic, "key": order.key}
        )

    # The end.

    async def _finish(self, helpers: list[asyncio.Task[None]]) -> None:
        """Wait for what is in flight, until it is cut off."""
        while works := self._works():
            _raise_ended(helpers)
            if self._stop.expired:
                self._cut_all()
            await asyncio.wait(
                [work.task for work in works if work.task is not None], timeout=_CHECK_STOP_SECONDS
            )
            if self._stop.expired and not any(work.at_work for work in self._works()):
                await asyncio.wait(
                    [work.task for work in self._works() if work.task is not None] or [_nothing()],
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


class _Loop(asyncio.SelectorEventLoop):
    """Resolves names in threads of their own: a dead name server keeps no other topic."""

    async def getaddrinfo(self, host: Any, port: Any, **hints: int) -> Any:
        return await in_thread(functools.partial(socket.getaddrinfo, host, port, **hints))
