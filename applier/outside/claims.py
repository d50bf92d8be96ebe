"""Claims: take up ready keys of topics where there is room for them."""

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
from inturn.applier.outside.lanes import Lane, Lanes, Work
from inturn.applier.outside.leases import Lease, Leases
from inturn.applier.outside.link import SharedConnection
from inturn.applier.stop import Stop
from inturn.schema.advice import one_line
from inturn.schema.errors import InturnError, OwnerChanged, UnknownTopic, from_database

log = logging.getLogger("inturn.applier")

#: The most keys of one claim: its transaction stays far below a second.
CLAIM_KEYS = 50


class Claims:
    """Claims ready keys for one worker outside the database, topic by topic, and begins work on each.

    Attributes:
        left_out: why each topic is left out in which somebody else owns now what merges its commands.
    """

    def __init__(
        self,
        lanes: Lanes,
        leases: Leases,
        link: SharedConnection,
        take: Callable[[Lane, Work], Coroutine[Any, Any, None]],
        *,
        drain: bool,
        stop: Stop,
        tallies: Tallies,
    ) -> None:
        """Make them. take, drain, stop, tallies: as for OutsideRounds."""
        self._lanes = lanes
        self._leases = leases
        self._link = link
        self._take = take
        self._drain = drain
        self._stop = stop
        self._tallies = tallies
        self.left_out: dict[str, InturnError] = {}

    async def make(self, lanes: Sequence[Lane] | None = None) -> bool:
        """Take up ready keys where there is room; return whether there were any.

        lanes: of these topics; None: of those that may have keys that nobody has looked for.

        Raises:
            psycopg.Error: the database was lost, or has refused the claim of every topic; in a drain, of one.
        """
        found, refused = False, None
        for lane in self._lanes if lanes is None else lanes:
            wanted, octets = min(lane.room, CLAIM_KEYS), self._lanes.octets
            if not wanted or octets == 0 or self._stop.requested or (lanes is None and not lane.look):
                continue
            if time.monotonic() < lane.refused_until:
                continue
            probe = lane.breaker.open
            try:
                leases = await self._claim(lane, wanted, octets)
            except psycopg.DatabaseError as error:
                if error.sqlstate is None:
                    raise
                lane.refused_until, refused = time.monotonic() + pacing.REFUSED_SECONDS, error
                continue
            if leases is None:
                continue
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
        if refused is not None:
            self._meet(refused)
        return found

    async def _claim(self, lane: Lane, wanted: int, octets: int | None) -> list[Lease] | None:
        """Claim keys of a topic; None: it is left out, or not there any more.

        Raises:
            psycopg.Error: the database was lost, or has refused.
        """
        claim = functools.partial(
            self._leases.claim, topic=lane.topic, max_keys=wanted, seconds=lane.claim_seconds, octets=octets
        )
        try:
            leases = await self._link.run(claim)
        except psycopg.DatabaseError as error:
            if error.sqlstate == OwnerChanged.sqlstate:
                self._leave_out(lane, error)
            elif error.sqlstate == UnknownTopic.sqlstate:
                self._lanes.ask_again()
                lane.served = False
            else:
                raise
            return None
        self.left_out.pop(lane.topic, None)
        return leases

    def _leave_out(self, lane: Lane, error: psycopg.DatabaseError) -> None:
        """Leave a topic out that is refused: nothing was claimed. It is asked again when others are."""
        refusal = from_database(error, topic=lane.topic)
        assert refusal is not None  # noqa: S101 - for mypy: OwnerChanged
        if lane.topic not in self.left_out:
            log.warning("left out: %s", refusal, extra={"topic": lane.topic})
        self.left_out[lane.topic] = refusal
        lane.look = False

    def _meet(self, refused: psycopg.DatabaseError) -> None:
        """Go on with the other topics for a while, when the database has refused the claim of one.

        Raises:
            psycopg.DatabaseError: there are none, or the drain cannot go on.
        """
        now = time.monotonic()
        if self._drain or all(now < lane.refused_until for lane in self._lanes if lane.served):
            raise refused
        log.warning("the database refused a claim, trying again: %s", one_line(str(refused)))
