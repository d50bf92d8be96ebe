"""Lanes: a topic that is applied outside the database, and the keys of it that are in flight."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from inturn.applier.breaker import Breaker
from inturn.applier.outside.effect import Effect
from inturn.applier.outside.leases import Lease


@dataclass(frozen=True, slots=True)
class OutsideTarget:
    """A topic whose commands are applied outside the database.

    Attributes:
        limit: how many of its keys are worked on at a time.
        effect: what applies them.
        settings: what that was made from: while it is the same, the first one made stays.
        timeout: how long a command may take, in seconds; None: for ever.
    """

    topic: str
    limit: int
    effect: Effect
    settings: object
    timeout: float | None = None


@dataclass(eq=False, slots=True)
class Lane:
    """A topic: what applies it, and what of it is in flight."""

    topic: str
    limit: int
    settings: object
    effect: Effect
    breaker: Breaker
    in_flight: set[Work] = field(default_factory=set)
    #: Whether there may be ready keys that nobody has looked for.
    look: bool = True
    served: bool = True
    timeout: float | None = None

    @property
    def room(self) -> int:
        return self.breaker.room(len(self.in_flight), self.limit) if self.served else 0


@dataclass(eq=False, slots=True)
class Work:
    """A key in flight.

    Attributes:
        probe: it is the one by which an open breaker finds out.
        at_work: the effect is under way, so that a cancel of the task ends it.
        was_cut: a cancel is ours. One that is not comes from the handler, and is its failure.
    """

    lease: Lease
    probe: bool
    task: asyncio.Task[None] | None = None
    at_work: bool = False
    was_cut: bool = False
    renewing: bool = False
    fenced: bool = False

    def cut(self) -> None:
        if self.at_work and self.task is not None:
            self.was_cut = True
            self.task.cancel()


def place(lease: Lease) -> dict[str, object]:
    """Return what a log line about a key in hand carries."""
    return {"topic": lease.topic, "key": lease.key}
