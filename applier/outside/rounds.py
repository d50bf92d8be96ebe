"""OutsideRounds: claims keys where there is room for them, otherwise sleeps."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg

from inturn.applier import pacing
from inturn.applier.metrics.tallies import OUTSIDE, Tallies
from inturn.applier.outside.claims import Claims
from inturn.applier.outside.drain_end import DrainEnd
from inturn.applier.outside.effect import in_thread
from inturn.applier.outside.lanes import Lane, Lanes, Work
from inturn.applier.outside.leases import Leases
from inturn.applier.outside.link import SharedConnection
from inturn.applier.stop import LoopBell, Stop
from inturn.schema.advice import one_line

log = logging.getLogger("inturn.applier")

#: How often a stop is looked for.
CHECK_STOP_SECONDS = 0.25


class OutsideRounds:
    """The rounds of one worker. `serve_on` goes on until a stop, or with drain until nothing is left."""

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
        self._claims = Claims(lanes, leases, link, take, drain=drain, stop=stop, tallies=tallies)
        self._drain = drain
        self._end = DrainEnd(lanes, leases, link)
        self._stop = stop
        self._bell = bell
        self._others_run = others_run
        self._check_helpers = check_helpers
        # Whether the bell was rung, and it has not looked since.
        self._heard = False
        self._tallies = tallies

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
                log.warning("the database refused, trying again: %s", one_line(str(error)))
            await in_thread(functools.partial(self._stop.wait, pacing.REFUSED_SECONDS))
        return None

    async def _serve(self) -> None:
        poll_seconds = pacing.FIRST_POLL_SECONDS
        self._lanes.ask_again()
        while not self._stop.requested:
            self._check_helpers()
            if self._lanes.are_stale:
                await self._lanes.take_up()
                self._bell.serve(lane.topic for lane in self._lanes)
                self._tallies.begin((lane.topic for lane in self._lanes), OUTSIDE)
            found = await self._claims.make()
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
                if await self._claims.make(open_lanes):
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
        for refusal in self._claims.left_out.values():
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
