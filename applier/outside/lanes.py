"""Lanes: the topics that are applied outside the database, and the keys of them that are in flight."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from inturn.applier import pacing
from inturn.applier.breaker import Breaker
from inturn.applier.outside.effect import Effect, in_thread
from inturn.applier.outside.leases import Lease


@dataclass(frozen=True, slots=True)
class OutsideTarget:
    """A topic whose commands are applied outside the database.

    Attributes:
        limit: how many of its keys are worked on at a time.
        effect: what applies them.
        settings: what that was made from: while it is the same, the first one made stays.
        timeout: how long a command may take, in seconds; None: for ever.
        merges: whether a claim may merge commands, which may take as long.
    """

    topic: str
    limit: int
    effect: Effect
    settings: object
    timeout: float | None = None
    merges: bool = False


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
    #: Until when, by time.monotonic(), it is not claimed: the database has refused that.
    refused_until: float = 0.0
    timeout: float | None = None
    merges: bool = False

    @property
    def claim_seconds(self) -> float | None:
        """How long a claim may take; None: as long as it does."""
        return self.timeout if self.merges else None

    @property
    def room(self) -> int:
        return self.breaker.room(len(self.in_flight), self.limit) if self.served else 0


#: How long what was cancelled may clean up; if it is still at work then, it is cancelled again.
CLEAN_UP_SECONDS = 1.0


@dataclass(eq=False, slots=True)
class Work:
    """A key in flight.

    Attributes:
        probe: it is the one by which an open breaker finds out.
        at_work: the effect is under way, so that a cancel of the task ends it.
        was_cut: a cancel is ours. One that is not comes from the handler, and is its failure.
        cut_at: when it was cancelled last, by time.monotonic().
        short: it was claimed while there was room for short payloads only.
        fenced: the lease was found to be gone, which is counted when the turn ends.
    """

    lease: Lease
    probe: bool
    short: bool = False
    task: asyncio.Task[None] | None = None
    at_work: bool = False
    was_cut: bool = False
    cut_at: float = -math.inf
    renewing: bool = False
    fenced: bool = False

    def cut(self) -> None:
        now = time.monotonic()
        # Whoever cuts does so again and again: that is not to cut a handler's cleaning up off too.
        if self.at_work and self.task is not None and now - self.cut_at >= CLEAN_UP_SECONDS:
            self.was_cut, self.cut_at = True, now
            self.task.cancel()


#: While the payloads in hand are as long, without those of the key that has most, only short ones are
#: claimed: no key keeps the others from being claimed. A claim brings as much again, and no more.
PAYLOADS_IN_HAND = 16 * 1024 * 1024
#: How long those claimed then may be together. A claim brings at most a quarter of what is left of that, so
#: that something is left for shorter ones, whatever comes.
SHORT_IN_HAND = 4 * 1024 * 1024


class Lanes:
    """The lanes of one process, by topic."""

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        choose: Callable[[psycopg.Connection[Any]], Sequence[OutsideTarget]],
        *,
        drain: bool,
    ) -> None:
        """Make them, of no topic yet.

        Args:
            connect, choose, drain: as for OutsideWorker.
        """
        self._connect = connect
        self._choose = choose
        self._drain = drain
        self._by_topic: dict[str, Lane] = {}
        self._seeing: psycopg.Connection[Any] | None = None
        self._chosen_at = 0.0

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._by_topic.values()))

    def works(self) -> list[Work]:
        """Return the keys in flight."""
        return [work for lane in self for work in lane.in_flight]

    @property
    def breakers(self) -> dict[str, Breaker]:
        """The breaker of each topic."""
        return {lane.topic: lane.breaker for lane in self}

    @property
    def octets(self) -> int | None:
        """How long the payloads of the next claim may be; None: as long as those of any."""
        works = self.works()
        sizes = [work.lease.size for work in works]
        if sum(sizes) - max(sizes, default=0) < PAYLOADS_IN_HAND:
            return None
        return max(SHORT_IN_HAND - sum(work.lease.size for work in works if work.short), 0) // 4

    def cut_all(self) -> None:
        """Cut off what is in flight."""
        for work in self.works():
            work.cut()

    @property
    def are_stale(self) -> bool:
        """Whether it is time to ask again which topics there are."""
        return time.monotonic() - self._chosen_at > pacing.CHOOSE_SECONDS

    def ask_again(self) -> None:
        """Ask again at the next look."""
        self._chosen_at = -pacing.CHOOSE_SECONDS

    async def take_up(self) -> None:
        """Ask which topics there are, and serve them from now on.

        Raises:
            psycopg.Error: the database refused, or was lost while draining.
            InturnError: the schema does not fit.
        """
        targets = await in_thread(self._see)
        if targets is None:
            self._chosen_at = time.monotonic()
            return
        there = {target.topic: target for target in targets}
        for topic, lane in self._by_topic.items():
            lane.served = topic in there
        for topic, target in there.items():
            known = self._by_topic.get(topic)
            if known is None:
                breaker = Breaker(topic)
                self._by_topic[topic] = Lane(topic, target.limit, target.settings, target.effect, breaker)
                self._by_topic[topic].timeout, self._by_topic[topic].merges = target.timeout, target.merges
                continue
            known.limit, known.timeout, known.merges = target.limit, target.timeout, target.merges
            if known.settings != target.settings:
                # What is in flight ends as it began.
                old, known.effect, known.settings = known.effect, target.effect, target.settings
                known.breaker = Breaker(topic)
                known.look = True
                await old.close()
        for lane in self._by_topic.values():
            await lane.effect.tidy()
        self._chosen_at = time.monotonic()

    def _see(self) -> Sequence[OutsideTarget] | None:
        """Ask which topics there are, in a thread; None when the database cannot be reached just now."""
        try:
            if self._seeing is None or self._seeing.closed or self._seeing.broken:
                self._seeing = self._connect()
            return self._choose(self._seeing)
        except psycopg.Error as error:
            # Not again: where it was refused, this may be a standby, and another server the primary by now.
            if self._seeing is not None:
                self._seeing.close()
            if self._drain or not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
                raise
            return None  # the link says so, and waits

    async def close(self) -> None:
        """Let go of what applies the topics."""
        for lane in self:
            await lane.effect.close()

    def close_connection(self) -> None:
        if self._seeing is not None:
            self._seeing.close()


def place(lease: Lease) -> dict[str, object]:
    """Return what a log line about a key in hand carries."""
    return {"topic": lease.topic, "key": lease.key}
