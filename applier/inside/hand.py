"""Hand: which command a worker's handler is at work on, and until when it may be."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import psycopg

from inturn.applier.command import ClaimedCommand
from inturn.schema.errors import InturnError

#: How many abandoned handlers, threads and coroutines, end a process: they take memory and processor.
MOST_ABANDONED = 10

#: For commands that may take for ever: one for all, since it comes with each command.
_NOT_HELD = nullcontext()


class TooManyAbandoned(InturnError):
    """Too many handlers did not return within their topic's timeout: only a new process gets rid of them."""

    def __init__(self, count: int) -> None:
        super().__init__(
            f"{count} handlers did not return within their topic's timeout",
            hint="They are abandoned, and go on in this process: start it again",
        )


class TookTooLong(Exception):
    """A statement of a command was cancelled, because the command took longer than its topic's timeout."""


class Overdue(NamedTuple):
    """A command that takes too long. timeout: how long it may, in seconds; is_alone: see Hand.holding."""

    order: ClaimedCommand
    timeout: float
    is_alone: bool


class Hand:
    """The hand of one worker: its thread holds a command while the handler runs, and another thread looks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._order: ClaimedCommand | None = None
        self._end_at = float("inf")
        self._length = 0.0
        self._is_alone = False
        self._was_cut = False

    def holding(
        self, order: ClaimedCommand, timeout: float | None, *, is_alone: bool
    ) -> AbstractContextManager[None]:
        """Hold a command while a block runs.

        Args:
            timeout: how long it may take, in seconds; None: for ever.
            is_alone: its key was claimed by a lease of its own, so that a failure can be recorded.

        Raises:
            TookTooLong: in place of what the driver says of the cancel, that the user asked for it.
        """
        return _NOT_HELD if timeout is None else self._holding(order, timeout, is_alone=is_alone)

    @contextmanager
    def _holding(self, order: ClaimedCommand, timeout: float, *, is_alone: bool) -> Iterator[None]:
        with self._lock:
            self._order, self._length, self._is_alone = order, timeout, is_alone
            self._end_at, self._was_cut = time.monotonic() + timeout, False
        try:
            yield
        except psycopg.errors.QueryCanceled as error:
            if not self._was_cut:
                raise
            text = f"the command took longer than its topic's timeout of {timeout:g} s"
            raise TookTooLong(text) from error
        finally:
            with self._lock:
                self._order = None

    def interrupt(self, cancel: Callable[[], None]) -> None:
        """Call `cancel` if the command is late; until it returns, the worker does not let go of the command.

        So a cancel meets no other statement than the command's.
        """
        with self._lock:
            if self._order is not None and time.monotonic() >= self._end_at:
                self._was_cut = True
                cancel()

    def overdue(self, by: float) -> Overdue | None:
        """Return the command that is late by that many seconds; None: none is."""
        with self._lock:
            if self._order is None or time.monotonic() < self._end_at + by:
                return None
            return Overdue(self._order, self._length, self._is_alone)
