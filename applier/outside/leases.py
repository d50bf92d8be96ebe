"""Leases: the keys that an applier works on outside the database, and the functions that hold them.

All times here are lengths, from the database's clock to this process's monotonic one: no wall clock of the
process matters.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

import psycopg

from inturn.applier import calls
from inturn.applier.calls.appliers import Suspects
from inturn.applier.calls.lease import LeaseOutcome, Progress
from inturn.applier.command import ClaimedCommand
from inturn.applier.failure import encodable
from inturn.applier.verdict import Requested

Connection: TypeAlias = psycopg.AsyncConnection[Any]


@dataclass(eq=False, slots=True)
class Lease:
    """A key in hand.

    Attributes:
        ends_at, renew_at: by time.monotonic().
        epoch_at_zero: what the database's clock said, in Unix seconds, when time.monotonic() was 0; a little
            less, by how long the answer to the claim was under way.
        size: how long the payloads of its orders are, all together.
    """

    topic: str
    key: str
    epoch: int
    length: float
    ends_at: float
    epoch_at_zero: float
    orders: list[ClaimedCommand] = field(default_factory=list)
    size: int = 0

    def extend(self, ends_at: float) -> None:
        self.ends_at = ends_at

    @property
    def renew_at(self) -> float:
        return self.ends_at - self.length / 2

    def alive(self) -> bool:
        return time.monotonic() < self.ends_at

    def database_time(self) -> float:
        """Return the database's clock, in Unix seconds."""
        return self.epoch_at_zero + time.monotonic()


@dataclass(frozen=True, slots=True)
class LeaseStep:
    """What is to be recorded of a lease: that seq took effect (None: it is renewed), and if it ends."""

    lease: Lease
    seq: int | None = None
    release: bool = False


class Leases:
    """The database functions for leases, for one applier."""

    def __init__(self, schema: str, applier_id: str) -> None:
        self._schema = schema
        self._applier_id = applier_id

    async def claim(
        self,
        connection: Connection,
        topic: str,
        max_keys: int,
        *,
        seconds: float | None = None,
        octets: int | None = None,
    ) -> list[Lease]:
        """Claim ready keys of a topic by lease.

        Args:
            seconds: how long a function that merges commands may take; None: for ever.
            octets: how many the payloads may have together; None: as many as a claim may bring.

        Raises:
            psycopg.Error: the database refused (UnknownTopic's SQLSTATE: the topic is gone), or was lost.
        """
        asked_at = time.monotonic()
        call = calls.lease.claim(self._schema, topic, max_keys, self._applier_id, octets)
        if seconds is None:
            rows = await call.on_async(connection)
        else:
            async with connection.transaction():
                await calls.session.limit(seconds).on_async(connection)
                rows = await call.on_async(connection)
        received_at = time.monotonic()
        leases: dict[str, Lease] = {}
        for key, epoch, attempt, left, now, seq, name, payload, created_at in rows:
            lease = leases.get(key)
            if lease is None:
                # From before the claim was sent: the lease ends here no later than there.
                lease = leases[key] = Lease(topic, key, epoch, left, asked_at + left, now - received_at)
            lease.orders.append(ClaimedCommand(topic, key, seq, name, payload, created_at, attempt, epoch))
            lease.size += len(payload)
        return list(leases.values())

    async def record(self, connection: Connection, steps: Sequence[LeaseStep]) -> list[LeaseOutcome]:
        """Record steps of different leases in one transaction, and extend the leases that are kept.

        Raises:
            psycopg.Error: the database refused, or was lost; nothing is known to be recorded.
        """
        asked_at = time.monotonic()
        progress = [
            Progress(step.lease.topic, step.lease.key, step.lease.epoch, step.seq, step.release)
            for step in steps
        ]
        recorded = await calls.lease.record_progress(self._schema, progress).on_async(connection)
        outcomes: list[LeaseOutcome] = []
        for step, (outcome, seconds) in zip(steps, recorded, strict=True):
            if seconds is not None:
                step.lease.extend(asked_at + seconds)
            outcomes.append(outcome)
        return outcomes

    async def fail(
        self, connection: Connection, order: ClaimedCommand, error: str, asked: Requested
    ) -> tuple[str, int]:
        """End a lease whose next command failed; return the outcome, and how many commands were skipped.

        Raises:
            psycopg.Error: the database refused (Fenced's SQLSTATE: the lease is gone), or was lost.
        """
        error = encodable(error, connection.info)
        async with connection.transaction():
            outcome = await calls.lease.fail(
                self._schema, order.topic, order.key, order.epoch, order.seq, error, asked
            ).on_async(connection)
            if outcome not in {"skipped", "cancelled"}:
                return outcome, 0
            skipped = await calls.turn.count_skipped(
                self._schema, order.topic, order.key, order.seq, order.epoch
            ).on_async(connection)
            return outcome, skipped

    async def lose(
        self, connection: Connection, lease: Lease, error: str | None, *, is_clear: bool | None = True
    ) -> str:
        """End a lease of which something could not be recorded: a failed attempt; if not even that, put off.

        Args:
            error: why; None: by no fault of the command, which is not charged with it.
            is_clear: None: it was lost against another transaction, again and again, or cut off: put off.

        Returns:
            the outcome, or `put off`, or `fenced` when the lease was gone.

        Raises:
            psycopg.Error: the database refused, or was lost.
        """
        if error is not None:
            error = encodable(error, connection.info)
        return await calls.lease.lose_alone(
            self._schema, lease.topic, lease.key, lease.epoch, error, is_clear=is_clear
        ).on_async(connection)

    async def has_others(self, connection: Connection, topic: str) -> bool:
        """Return whether an applier of another process serves a topic."""
        return await calls.appliers.has_others(self._schema, topic, self._applier_id).on_async(connection)

    async def announce_sleep(self, connection: Connection, topics: list[str]) -> datetime:
        """Have appends notify this process for a while; return the database's time."""
        return await calls.appliers.announce_sleep(self._schema, topics).on_async(connection)

    async def seconds_to_next_ready(
        self, connection: Connection, topics: list[str], since: datetime
    ) -> float | None:
        """Return how long until the next key of these topics is ready; None when none is due."""
        return await calls.appliers.next_ready(self._schema, topics, since).on_async(connection)

    async def clock(self, connection: Connection) -> str:
        """Return what the database's clock says."""
        return await calls.session.clock().on_async(connection)

    async def next_suspect(
        self, connection: Connection, topics: list[str], since: str | None, began_at: str
    ) -> Suspects:
        """Return when the next key is ready that was put off, as an applier was lost with it."""
        return await calls.appliers.next_suspect(self._schema, topics, since, began_at).on_async(connection)
