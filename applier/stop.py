"""Stop: how workers learn that they should end, and the bells that wake the sleeping ones."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from inturn.applier.pacing import NEVER, Wakes


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
    """Wakes one sleeping worker a ring, for one topic or for all. A ring that finds none asleep is kept.

    Rings for topics come from anybody who may NOTIFY: for one that is not served it is not heard, and after
    many that found nothing only a few times a second; see pacing.Wakes.
    """

    def __init__(self, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._condition = threading.Condition()
        self._workers = workers
        self._rings = 0
        self._topics: set[str] = set()
        self._served: frozenset[str] | None = None
        self._wakes = Wakes(clock)

    def serve(self, topics: Iterable[str]) -> None:
        """Hear of these topics only, from now on."""
        with self._condition:
            self._served = frozenset(topics)
            self._topics &= self._served

    def looked(self, *, found: bool) -> None:
        """Say whether a worker that was woken for topics has found something in them."""
        with self._condition:
            self._wakes.spend(found=found)

    def ring(self, topic: str | None = None) -> None:
        """Wake a worker: a key of this topic has become ready, or of any (None)."""
        with self._condition:
            if topic is None:
                self._rings = min(self._rings + 1, self._workers)
            elif self._served is None or topic in self._served:
                self._topics.add(topic)
            else:
                return
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
        end_at = time.monotonic() + seconds
        with self._condition:
            while self._rings == 0:
                deaf = self._wakes.seconds if self._topics else NEVER
                left = end_at - time.monotonic()
                if deaf <= 0 or left <= 0:
                    break
                self._condition.wait(min(left, deaf))
            if self._rings > 0:
                self._rings -= 1
                return frozenset()
            if not self._topics or self._wakes.seconds > 0:
                return None
            topics, self._topics = frozenset(self._topics), set()
            return topics


class LoopBell:
    """Wakes the coroutines of one event loop. Rung from any thread; one rung too early is kept.

    As a Bell it does not hear of what is not served, and of the rest not more often than pacing.Wakes has it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._event = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rung = False
        self._served: frozenset[str] | None = None
        self._wakes = Wakes(clock)
        # Whether the loop was told of a ring and has not woken yet: others then say nothing new.
        self._told = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._told = False
        self._ring()

    def detach(self) -> None:
        self._loop = None

    def serve(self, topics: Iterable[str]) -> None:
        """Hear of these topics only, from now on."""
        self._served = frozenset(topics)

    def looked(self, *, found: bool) -> None:
        """Say whether keys were found after the bell was rung."""
        self._wakes.spend(found=found)

    def ring(self, topic: str | None = None) -> None:
        loop, served = self._loop, self._served
        if loop is None or (
            topic is not None and (self._told or (served is not None and topic not in served))
        ):
            return
        self._told = topic is not None or self._told
        try:
            loop.call_soon_threadsafe(self._ring if topic is None else self._ring_when_heard)
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

    def _ring_when_heard(self) -> None:
        deaf = self._wakes.seconds
        if deaf > 0 and self._loop is not None:
            self._loop.call_later(deaf, self._ring_when_heard)
        else:
            self._ring()

    def _ring(self) -> None:
        # First: whoever rings from now on has to tell again.
        self._told = False
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
