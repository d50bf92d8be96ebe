"""DrainEnd: whether a drain of work outside the database leaves nothing that is ready."""

from __future__ import annotations

import functools
from datetime import UTC, datetime

from inturn.applier.breaker import TargetDown
from inturn.applier.outside.lanes import Lanes
from inturn.applier.outside.leases import Leases
from inturn.applier.outside.link import SharedConnection
from inturn.applier.process.suspects import SuspectLooks

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class DrainEnd:
    """Asked by one worker when it found nothing ready and has nothing in flight."""

    def __init__(self, lanes: Lanes, leases: Leases, link: SharedConnection) -> None:
        self._lanes = lanes
        self._leases = leases
        self._link = link
        self._suspects = SuspectLooks()

    async def begin(self) -> None:
        """Note when the drain begins, once."""
        if self._suspects.began_at is None:
            self._suspects.began_at = await self._link.run(self._leases.clock)

    async def seconds_to_suspect(self) -> float | None:
        """Return how long until the worker looks again, for a key that was put off; None: it need not."""
        topics = [lane.topic for lane in self._lanes if lane.room]
        if not topics or self._suspects.began_at is None:
            return None
        look = functools.partial(
            self._leases.next_suspect,
            topics=topics,
            since=self._suspects.since,
            began_at=self._suspects.began_at,
        )
        return self._suspects.seconds_to_claim(await self._link.run(look))

    async def check_down(self) -> None:
        """Check that the drain leaves nothing that is ready.

        Raises:
            TargetDown: only topics are left whose service does not answer.
        """
        down = [lane.topic for lane in self._lanes if lane.breaker.open and not lane.room]
        if down:
            left = functools.partial(self._leases.seconds_to_next_ready, topics=down, since=_LONG_AGO)
            if await self._link.run(left) == 0:
                raise TargetDown(
                    f"topic {down[0]!r} was not drained: its target does not answer",
                    hint="Its keys stay as they are; see inturn keys --retrying",
                    topic=down[0],
                )
