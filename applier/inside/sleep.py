"""Sleep: until when a worker may sleep, and whether it is notified meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psycopg

from inturn.applier import calls, pacing
from inturn.applier.inside.session import session_of

#: A worker of more topics than this announces that it sleeps by one row for all.
ANNOUNCED_BY_NAME = 20
#: The row of announce_sleep that stands for all topics.
EVERY_TOPIC = ""


class Sleep:
    """The sleep of one worker."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        # When it announced, before it looked and found nothing, that it sleeps.
        self._announced_at = -pacing.ANNOUNCED_SECONDS
        # Until when it may sleep, by time.monotonic().
        self._due_at = pacing.NEVER

    @property
    def announced(self) -> bool:
        """Whether every append since its last look at all topics notifies it, for long enough to sleep."""
        return time.monotonic() - self._announced_at < pacing.ANNOUNCED_SECONDS

    def announce(self, connection: psycopg.Connection[Any], topics: Sequence[str]) -> None:
        """Have appends to these topics, all that it serves, notify it for a while."""
        named = list(topics) if len(topics) <= ANNOUNCED_BY_NAME else [EVERY_TOPIC]
        session_of(connection).call(calls.appliers.announce_sleep(self._schema, named))
        self._announced_at = time.monotonic()

    def forget_announcement(self) -> None:
        self._announced_at = -pacing.ANNOUNCED_SECONDS

    @property
    def seconds(self) -> float:
        """For how long it may sleep."""
        return max(self._due_at - time.monotonic(), 0.0)

    def end_never(self) -> None:
        """Sleep until it is woken: nothing is due as far as is known."""
        self._due_at = pacing.NEVER

    def end_within(self, seconds: float | None) -> None:
        """Sleep no longer than that many seconds from now; None: nothing is due."""
        if seconds is not None:
            self._due_at = min(self._due_at, time.monotonic() + seconds)

    def end_when_ready(
        self, connection: psycopg.Connection[Any], topics: Sequence[str], looked_at: str
    ) -> None:
        """Sleep no longer than until the next key of these topics is ready that was not at that time."""
        self.end_within(
            session_of(connection).call(calls.appliers.next_ready(self._schema, list(topics), looked_at))
        )
