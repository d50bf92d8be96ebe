"""Command: what a handler is called with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

#: The commands whose handler runs, in its thread or task: log lines of handlers carry them.
in_hand: ContextVar[Sequence[Command]] = ContextVar("inturn_in_hand", default=())


@contextmanager
def handling(*commands: Command) -> Iterator[None]:
    """Make the log lines that are written in this block carry the command, or the batch."""
    token = in_hand.set(commands)
    try:
        yield
    finally:
        in_hand.reset(token)


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a key, as it was appended.

    The defaults are for tests: an applier fills in everything.

    Attributes:
        topic, key: the key that it was appended to.
        seq: its number in the key; commands take effect in the order of these numbers.
        name: what it is called.
        payload: the JSON value, made anew for every attempt.
        created_at: when it was appended, by the database's clock; timezone-aware.
        attempt: 1 at the first try, 2 after one failure, and so on.
        epoch: the number of this turn of the key; it grows with every turn.
    """

    topic: str
    key: str
    seq: int
    name: str
    payload: Any = field(default_factory=dict)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    attempt: int = 1
    epoch: int = 1


@dataclass(frozen=True, slots=True)
class ClaimedCommand:
    """A command as it was claimed: nothing of it was read yet that might fail.

    Attributes:
        payload: the JSON as PostgreSQL writes it: its numbers unchanged.
    """

    topic: str
    key: str
    seq: int
    name: str
    payload: str
    created_at: datetime
    attempt: int
    epoch: int

    def read(self, parse_float: Callable[[str], Any] | None = None) -> Command:
        """Return the command, with its payload read.

        Args:
            parse_float: makes numbers that have a fraction; None: floats.

        Raises:
            ValueError: Python cannot read the payload, as with a number of more than 4,300 digits.
            RecursionError: it is nested too deep.
        """
        return Command(
            self.topic,
            self.key,
            self.seq,
            self.name,
            json.loads(self.payload, parse_float=parse_float),
            self.created_at,
            self.attempt,
            self.epoch,
        )
