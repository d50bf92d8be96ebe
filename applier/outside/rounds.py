"""OutsideRounds: claims keys where there is room for them, otherwise sleeps."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import psycopg

from inturn.applier import pacing
from inturn.applier.metrics.tallies import CLAIMS, Tallies
from inturn.applier.outside.drain_end import DrainEnd
from inturn.applier.outside.effect import in_thread
from inturn.applier.outside.lanes import Lane, Lanes, Work
from inturn.applier.outside.leases import Leases
from inturn.applier.outside.link import SharedConnection
from inturn.applier.stop import LoopBell, Stop
from inturn.schema.errors import InturnError, OwnerChanged, UnknownTopic, from_database

log = logging.getLogger("inturn.applier")

#: The most keys of one claim: its transaction stays far below a second.
CLAIM_KEYS = 50
#: The wait after the database refused.
REFUSED_SECONDS = 1.0
#: How often a stop is looked for.
CHECK_STOP_SECONDS = 0.25


class OutsideRounds:
    """Of one worker. `serve_on` goes on until a stop, or with drain until nothing is left."""

    def __init__(
        self,
        lanes: Lanes,
        leases: Leases,
        link: SharedConnection,
        take: Callable[[Lane, Work], Coroutine[Any, Any, None]],
        *,
        drain: bool,
        stop: Stop,
        bell: LoopBell,
        others_run: Callable[[], bool],
        check_helpers: Callable[[], None],
        tallies: Tallies,
    ) -> None:
        """Make them.

        Args:
            take: takes a key's turn: what a task of its own runs.
            drain, stop, bell, others_run, tallies: as for OutsideWorker.
            check_helpers: raises what a task has ended with without which nothing is recorded.
        """
        self._lanes = lanes
        self._leases = leases
        self._link = link
        self._take = take
        self._drain = drain
        self._end = DrainEnd(lanes, leases, link)
        self._stop = stop
        self._bell = bell
        self._others_run = others_run
        self._check_helpers = check_helpers
        # Whether the bell was rung, and it has not looked since.
        self._heard = False
        self._tallies = tallies
        # Topics that are left out because what merges their commands belongs to somebody else now.
        self._refused: dict[str, InturnError] = {}

    async def serve_on(self) -> None:
        """Serve, again after a while when the database refused."""
        if self._drain:
            await self._end.begin()
        while not self._stop.requested:
            try:
                return await self._serve()
            except psycopg.Error as error:
                if self._stop.requested:
                    return None
                if self._drain:
                    raise
                log.warning("the database refused, trying again: %s", " ".join(str(error).split()))
            await in_thread(functools.partial(self._stop.wait, REFUSED_SECONDS))
        return None

    async def _serve(self) -> None:
        poll_seconds = pacing.FIRST_POLL_SECONDS
        self._lanes.ask_again()
        while not self._stop.requested:
            self._check_helpers()
            if self._lanes.are_stale:
                await self._lanes.take_up()
                self._bell.serve(lane.topic for lane in self._lanes)
                self._tallies.begin(lane.topic for lane in self._lanes)
            found = await self._claim_round()
            if self._heard:
                self._bell.looked(found=found)
                self._heard = False
            if found:
                poll_seconds = pacing.FIRST_POLL_SECONDS
                continue
            open_lanes = [lane for lane in self._lanes if lane.room and self._lanes.octets != 0]
            due = None
            if self._drain and self._is_at_rest():
                if await self._has_ended():
                    return
                continue
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
            woken = await self._sleep(poll_seconds, due)
            # Whoever notifies in vain does not make it look more often afterwards.
            if not self._heard:
                poll_seconds = pacing.FIRST_POLL_SECONDS if woken else pacing.next_poll(poll_seconds)

    async def _has_ended(self) -> bool:
        """Return whether a drain that is at rest has ended; wait for a key that was put off, if there is one.

        Raises:
            TargetDown: only topics are left whose service does not answer.
            OwnerChanged: a topic was left out.
        """
        due = await self._end.seconds_to_suspect()
        if due is not None:
            await self._sleep(due, None)
            return False
        await self._end.check_down()
        for refusal in self._refused.values():
            raise refusal
        return True

    async def _sleep(self, poll_seconds: float, due: float | None) -> bool:
        """Sleep until keys may be ready; return whether that was heard, rather than polled."""
        # 0: one is due, and no key was ready for it just now: that is polled for, as any key.
        probes = [lane.breaker.seconds_to_probe() or None for lane in self._lanes if not lane.in_flight]
        ends = [poll_seconds, due, *probes]
        end_at = time.monotonic() + min(seconds for seconds in ends if seconds is not None)
        while not self._stop.requested:
            seconds = min(end_at - time.monotonic(), CHECK_STOP_SECONDS)
            if seconds <= 0:
                break
            if await self._bell.wait(seconds):
                self._heard = self._bell.rung()
                if self._heard:
                    break
                if self._drain:
                    break  # nobody listens, so what a key that was let go has pending is not heard of
                if any(lane.look and lane.room for lane in self._lanes):
                    return True
        else:
            return False
        for lane in self._lanes:
            lane.look = True
        return time.monotonic() < end_at

    async def _claim_round(self, lanes: Sequence[Lane] | None = None) -> bool:
        """Take up ready keys where there is room; return whether there were any."""
        found = False
        for lane in self._lanes if lanes is None else lanes:
            wanted, octets = min(lane.room, CLAIM_KEYS), self._lanes.octets
            if not wanted or octets == 0 or self._stop.requested or (lanes is None and not lane.look):
                continue
            probe = lane.breaker.open
            try:
                leases = await self._link.run(
                    functools.partial(
                        self._leases.claim,
                        topic=lane.topic,
                        max_keys=wanted,
                        seconds=lane.claim_seconds,
                        octets=octets,
                    )
                )
            except psycopg.DatabaseError as error:
                if error.sqlstate == OwnerChanged.sqlstate:
                    self._leave_out(lane, error)
                    continue
                if error.sqlstate != UnknownTopic.sqlstate:
                    raise
                self._lanes.ask_again()
                lane.served = False
                continue
            self._refused.pop(lane.topic, None)
            # A short claim does not mean that nothing is left: a key may have had nothing to apply, or was
            # held at last. Only an empty one does.
            lane.look = bool(leases) or octets is not None
            if leases:
                self._tallies.count(CLAIMS, lane.topic)
            for lease in leases:
                work = Work(lease, probe, short=octets is not None)
                lane.in_flight.add(work)
                work.task = asyncio.create_task(self._take(lane, work))
            found = found or bool(leases)
        return found

    def _leave_out(self, lane: Lane, error: psycopg.DatabaseError) -> None:
        """Leave a topic out that is refused: nothing was claimed. It is asked again when others are."""
        refusal = from_database(error, topic=lane.topic)
        assert refusal is not None  # noqa: S101 - for mypy: OwnerChanged
        if lane.topic not in self._refused:
            log.warning("left out: %s", refusal, extra={"topic": lane.topic})
        self._refused[lane.topic] = refusal
        lane.look = False

    def _is_at_rest(self) -> bool:
        """Return whether nothing is ready, nothing in flight, and nobody at work who may append more."""
        return not (
            self._lanes.works()
            or self._others_run()
            or any(
                (lane.look and lane.room) or (lane.breaker.open and not lane.room and not lane.breaker.probed)
                for lane in self._lanes
            )
        )
