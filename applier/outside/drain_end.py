"""DrainEnd: whether a drain of work outside the database leaves nothing that is ready."""

from __future__ import annotations

import functools
from datetime import UTC, datetime

from inturn.applier.breaker import TargetDown
from inturn.applier.outside.lanes import Lanes
from inturn.applier.outside.leases import Leases
from inturn.applier.outside.link import SharedConnection

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class DrainEnd:
    """Asked by one worker when it found nothing ready and has nothing in flight."""

    def __init__(self, lanes: Lanes, leases: Leases, link: SharedConnection) -> None:
        self._lanes = lanes
        self._leases = leases
        self._link = link
        # When it last asked for keys that were put off, by the database's clock.
        self._suspects_at: str | None = None

    async def seconds_to_suspect(self) -> float | None:
        """Return how long until the worker looks again, for a key that was put off; None: it need not."""
        topics = [lane.topic for lane in self._lanes if lane.room]
        if not topics:
            return None
        since = self._suspects_at
        self._suspects_at, due = await self._link.run(
            functools.partial(self._leases.next_suspect, topics=topics, since=since)
        )
        # Only a claim after a first look tells those that are ready from those in somebody else's hands.
        return 0.0 if since is None else due

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
