"""Stop: how workers learn that they should end, and the bells that wake the sleeping ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Stop:
    """Whether to end after the command in hand (requested), or to let go of it too (expired)."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._expired = threading.Event()

    def request(self) -> None:
        self._requested.set()

    def expire(self) -> None:
        self._expired.set()
        self._requested.set()

    @property
    def requested(self) -> bool:
        return self._requested.is_set()

    @property
    def expired(self) -> bool:
        return self._expired.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for a request to stop, for at most that long; return whether it came."""
        return self._requested.wait(seconds)


class Bell:
    """Wakes one sleeping worker a ring, for one topic or for all. A ring that finds none asleep is kept."""

    def __init__(self, workers: int) -> None:
        self._condition = threading.Condition()
        self._workers = workers
        self._rings = 0
        self._topics: set[str] = set()

    def ring(self, topic: str | None = None) -> None:
        """Wake a worker: a key of this topic has become ready, or of any (None)."""
        with self._condition:
            if topic is None:
                self._rings = min(self._rings + 1, self._workers)
            else:
                self._topics.add(topic)
            self._condition.notify()

    def ring_all(self) -> None:
        with self._condition:
            self._rings = self._workers
            self._condition.notify_all()

    def wait(self, seconds: float) -> frozenset[str] | None:
        """Sleep until the bell rings or the time is up.

        Returns:
            The topics that it rang for; none when it rang for all; None when the time was up.
        """
        with self._condition:
            if self._rings == 0 and not self._topics:
                self._condition.wait(seconds)
            if self._rings > 0:
                self._rings -= 1
                return frozenset()
            topics, self._topics = frozenset(self._topics), set()
            return topics or None


class LoopBell:
    """Wakes the coroutines of one event loop. Rung from any thread; one rung too early is kept."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rung = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ring()

    def detach(self) -> None:
        self._loop = None

    def ring(self, topic: str | None = None) -> None:  # noqa: ARG002 - a Ringer; every lane looks
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._ring)
            except RuntimeError:
                return  # it has ended meanwhile

    def ring_all(self) -> None:
        self.ring()

    def nudge(self) -> None:
        """Wake it from within the loop, for another reason than a ring."""
        self._event.set()

    def rung(self) -> bool:
        """Return whether it was rung since this was last asked."""
        rung, self._rung = self._rung, False
        return rung

    async def wait(self, seconds: float) -> bool:
        """Sleep until it is rung or nudged, or the time is up; return whether it was."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True

    def _ring(self) -> None:
        self._rung = True
        self._event.set()


class Ringer(Protocol):
    """What can be rung."""

    def ring(self, topic: str | None = None) -> None: ...

    def ring_all(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Bells:
    """Bells that ring together."""

    bells: Sequence[Ringer]

    def ring(self, topic: str | None = None) -> None:
        for bell in self.bells:
            bell.ring(topic)

    def ring_all(self) -> None:
        for bell in self.bells:
            bell.ring_all()
