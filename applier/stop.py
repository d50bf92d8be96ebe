"""Stop: how workers learn that they should end, and the bell that wakes the sleeping ones."""

from __future__ import annotations

import threading


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
    """Wakes one sleeping worker a ring. A ring that finds none asleep is kept."""

    def __init__(self, workers: int) -> None:
        self._condition = threading.Condition()
        self._workers = workers
        self._rings = 0

    def ring(self) -> None:
        with self._condition:
            self._rings = min(self._rings + 1, self._workers)
            self._condition.notify()

    def ring_all(self) -> None:
        with self._condition:
            self._rings = self._workers
            self._condition.notify_all()

    def wait(self, seconds: float) -> bool:
        """Sleep until the bell rings or the time is up; return whether it rang."""
        with self._condition:
            if self._rings == 0:
                self._condition.wait(seconds)
            rang = self._rings > 0
            self._rings -= rang
            return rang
