"""Tallies: what the workers of a process count for metrics. Needs nothing that is not there anyway."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from inturn.applier.inside.batch import Batch, Handled

#: The upper bounds of the histograms' buckets, in seconds; one more bucket is for what took longer.
BOUNDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    1800.0,
)

#: The families that are counted, and those that are histograms, as in families.
COMMANDS, TURNS, EMPTY_TURNS = "inturn_applier_commands", "inturn_applier_turns", "inturn_applier_empty_turns"
CLAIMS, LOST_LEASES = "inturn_applier_claims", "inturn_applier_lost_leases"
WAIT, HANDLER = "inturn_applier_wait_seconds", "inturn_applier_handler_seconds"


#: What is counted of work in the database's transactions, and outside of them.
INSIDE, OUTSIDE = (CLAIMS, TURNS, EMPTY_TURNS), (CLAIMS, TURNS, LOST_LEASES)


class Place(NamedTuple):
    """Which sample it is. outcome: empty where the family has none."""

    family: str
    topic: str
    outcome: str = ""


@dataclass(slots=True)
class Span:
    """A histogram. counts: how many lengths of time fell into each bucket, in seconds; total: their sum."""

    total: float = 0.0
    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def add(self, seconds: float, count: int = 1) -> None:
        self.total += seconds * count
        self.counts[bisect_left(BOUNDS, seconds)] += count


@dataclass(slots=True)
class Snapshot:
    """What was counted up to a moment."""

    counts: dict[Place, int] = field(default_factory=dict)
    spans: dict[Place, Span] = field(default_factory=dict)

    def as_json(self) -> list[list[Any]]:
        return [
            *([*place, count] for place, count in self.counts.items()),
            *([*place, span.total, span.counts] for place, span in self.spans.items()),
        ]

    @classmethod
    def from_json(cls, said: list[list[Any]]) -> Snapshot:
        found = cls()
        for family, topic, outcome, *value in said:
            place = Place(family, topic, outcome)
            if len(value) == 1:
                found.counts[place] = value[0]
            else:
                found.spans[place] = Span(*value)
        return found

    def add(self, other: Snapshot) -> None:
        """Add what another process has counted."""
        for place, count in other.counts.items():
            self.counts[place] = self.counts.get(place, 0) + count
        for place, span in other.spans.items():
            mine = self.spans.setdefault(place, Span())
            mine.total += span.total
            mine.counts = [a + b for a, b in zip(mine.counts, span.counts, strict=True)]


class Tallies:
    """The tallies of one process. Threads may share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted = Snapshot()
        # How far the database's clock is ahead of this machine's, in seconds.
        self._ahead = 0.0

    def set_clock(self, now: datetime) -> None:
        """Learn the database's time, as of now."""
        self._ahead = now.timestamp() - time.time()

    def begin(self, topics: Iterable[str], families: Sequence[str]) -> None:
        """Have counters of topics, and those of outcomes, at 0: Prometheus sees no rise to a first value."""
        with self._lock:
            for topic in topics:
                for family in families:
                    self._count(Place(family, topic), 0)
                for outcome in ("applied", "failed", "skipped"):
                    self._count(Place(COMMANDS, topic, outcome), 0)

    def count_batch(self, topic: str, batch: Batch) -> None:
        """Count what a transaction of turns did; of one that has to be done again, only that it claimed."""
        with self._lock:
            self._count(Place(CLAIMS, topic))
            if batch.redo:
                return
            self._count(Place(TURNS, topic), batch.keys)
            self._count(Place(EMPTY_TURNS, topic), batch.empty)
            for outcome, count in _outcomes(batch):
                self._count(Place(COMMANDS, topic, outcome), count)
            if batch.handled is not None:
                self._handled(topic, batch.handled)
            elif (done := batch.commands + batch.failures) and batch.target_seconds:
                self._span(HANDLER, topic).add(batch.target_seconds / done, done)
                if isinstance(batch.hand, datetime):
                    began_at = time.time() + self._ahead - batch.target_seconds
                    self._span(WAIT, topic).add(max(began_at - batch.hand.timestamp(), 0.0))

    def count(self, family: str, topic: str, outcome: str = "", count: int = 1) -> None:
        with self._lock:
            self._count(Place(family, topic, outcome), count)

    def count_handled(self, topic: str, handled: Handled) -> None:
        """Count a handler's call."""
        with self._lock:
            self._handled(topic, [handled])

    def snapshot(self) -> Snapshot:
        """Return what was counted so far: a copy."""
        found = Snapshot()
        with self._lock:
            found.add(self._counted)
        return found

    def _handled(self, topic: str, handled: Iterable[Handled]) -> None:
        waits, handlers = self._span(WAIT, topic), self._span(HANDLER, topic)
        for call in handled:
            handlers.add(call.seconds)
            if call.order.attempt == 1:  # before another attempt it waited because it had failed
                waits.add(max(call.began_at + self._ahead - call.order.created_at.timestamp(), 0.0))

    def _span(self, family: str, topic: str) -> Span:
        return self._counted.spans.setdefault(Place(family, topic), Span())

    def _count(self, place: Place, count: int = 1) -> None:
        self._counted.counts[place] = self._counted.counts.get(place, 0) + count


def _outcomes(batch: Batch) -> list[tuple[str, int]]:
    return [("applied", batch.commands), ("failed", batch.failures), ("skipped", batch.skipped)]
