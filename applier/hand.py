"""Hand: which command a worker's handler is at work on, and until when it may be."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from inturn.applier.turn import Order
from inturn.schema.errors import InturnError

#: A process with so many threads that were given up ends: they take memory and processor, and stay.
MOST_ABANDONED = 10


class TooManyAbandoned(InturnError):
    """Too many handlers did not return within their topic's timeout: only a new process gets rid of them."""

    def __init__(self, count: int) -> None:
        super().__init__(
            f"{count} handlers did not return within their topic's timeout",
            hint="Their threads are left behind in this process: start it again",
        )


class Hand:
    """Of one worker. Its thread holds a command while the handler runs; another thread looks at it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._order: Order | None = None
        self._end_at = float("inf")
        self._length = 0.0

    @contextmanager
    def holding(self, order: Order, timeout: float | None) -> Iterator[None]:
        """Hold a command. timeout: how long it may take, in seconds; None: for ever."""
        if timeout is None:
            yield
            return
        with self._lock:
            self._order, self._end_at, self._length = order, time.monotonic() + timeout, timeout
        try:
            yield
        finally:
            with self._lock:
                self._order = None

    def overdue(self, by: float) -> tuple[Order, float] | None:
        """Return the command that is late by so many seconds, and how long it may take; or None."""
        with self._lock:
            if self._order is None or time.monotonic() < self._end_at + by:
                return None
            return self._order, self._length
