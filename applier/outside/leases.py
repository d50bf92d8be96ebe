"""Leases: the keys that an applier works on outside the database, and the functions that hold them.

All times here are lengths, from the database's clock to this process's monotonic one: no wall clock of the
process matters.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

import psycopg
from psycopg import sql

from inturn.applier.command import Order
from inturn.applier.failure import encodable
from inturn.applier.verdict import Asked

Connection: TypeAlias = psycopg.AsyncConnection[Any]
Kept: TypeAlias = Literal["kept", "let go", "fenced"]


@dataclass(eq=False, slots=True)
class Lease:
    """A key in hand.

    Attributes:
        ends_at, renew_at: by time.monotonic().
        epoch_at_zero: what the database's clock said, in Unix seconds, when time.monotonic() was 0.
        size: how long the payloads of its orders are, all together.
    """

    topic: str
    key: str
    epoch: int
    length: float
    ends_at: float
    epoch_at_zero: float
    orders: list[Order] = field(default_factory=list)
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
class Step:
    """What is to be recorded of a lease: that seq took effect (None: it is renewed), and if it ends."""

    lease: Lease
    seq: int | None = None
    release: bool = False


class Leases:
    """The database functions for leases, for one applier."""

    def __init__(self, schema: str, applier_id: str) -> None:
        self._schema = sql.Identifier(schema)
        self._applier_id = applier_id

    async def claim(self, connection: Connection, topic: str, max_keys: int) -> list[Lease]:
        """Claim ready keys of a topic by lease.

        Raises:
            psycopg.Error: the database refused (UnknownTopic's SQLSTATE: the topic is gone), or was lost.
        """
        asked_at = time.monotonic()
        cursor = await connection.execute(
            sql.SQL(
                "SELECT key, epoch, attempt, extract(epoch FROM lease_until - clock_timestamp())::float8,"
                " extract(epoch FROM clock_timestamp())::float8, seq, name, payload::text, created_at"
                " FROM {}.claim(ARRAY[%s::text], %s, NULL, %s)"
            ).format(self._schema),
            (topic, max_keys, self._applier_id),
        )
        leases: dict[str, Lease] = {}
        for key, epoch, attempt, left, now, seq, name, payload, created_at in await cursor.fetchall():
            lease = leases.get(key)
            if lease is None:
                # From before the claim was sent: the lease ends here no later than there.
                lease = leases[key] = Lease(topic, key, epoch, left, asked_at + left, now - asked_at)
            lease.orders.append(Order(topic, key, seq, name, payload, created_at, attempt, epoch))
            lease.size += len(payload)
        return list(leases.values())

    async def record(self, connection: Connection, steps: Sequence[Step]) -> list[Kept]:
        """Record steps of different leases in one transaction, and extend the leases that are kept.

        Raises:
            psycopg.Error: the database refused, or was lost; nothing is known to be recorded.
        """
        asked_at = time.monotonic()
        cursor = await connection.execute(
            sql.SQL(
                "SELECT outcome, seconds FROM {}._record_progress("
                "%s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::boolean[]) ORDER BY place"
            ).format(self._schema),
            (
                [step.lease.topic for step in steps],
                [step.lease.key for step in steps],
                [step.lease.epoch for step in steps],
                [step.seq for step in steps],
                [step.release for step in steps],
            ),
        )
        outcomes: list[Kept] = []
        for step, (outcome, seconds) in zip(steps, await cursor.fetchall(), strict=True):
            if seconds is not None:
                step.lease.extend(asked_at + seconds)
            outcomes.append(outcome)
        return outcomes

    async def fail(self, connection: Connection, order: Order, error: str, asked: Asked) -> tuple[str, int]:
        """End a lease whose next command failed; return the outcome, and how many commands were passed over.

        Raises:
            psycopg.Error: the database refused (Fenced's SQLSTATE: the lease is gone), or was lost.
        """
        error = encodable(error, connection.info)
        async with connection.transaction():
            cursor = await connection.execute(
                sql.SQL(
                    "SELECT {}.fail(%s, %s, %s, %s, concat_ws(E'\\n', %s::text, v.problem),"
                    " jsonb_build_object('verdict', v.verdict, 'retry_after', v.retry_after))"
                    " FROM {}._read_verdict(%s, %s) v"
                ).format(self._schema, self._schema),
                (order.topic, order.key, order.epoch, order.seq, error, asked.sqlstate, asked.detail),
            )
            row = await cursor.fetchone()
            assert row is not None  # noqa: S101 - for mypy: the function returns one row
            if row[0] not in {"skipped", "cancelled"}:
                return row[0], 0
            cursor = await connection.execute(
                sql.SQL(
                    "SELECT count(*) FROM {}.skip WHERE topic = %s AND key = %s AND seq >= %s AND epoch = %s"
                ).format(self._schema),
                (order.topic, order.key, order.seq, order.epoch),
            )
            counted = await cursor.fetchone()
            return row[0], counted[0] if counted else 0

    async def lose(self, connection: Connection, lease: Lease, error: str) -> str:
        """End a lease of which something could not be recorded: a failed attempt; if not even that, put off.

        Returns:
            the outcome, or `put off`, or `fenced` when the lease was gone.

        Raises:
            psycopg.Error: the database refused, or was lost.
        """
        cursor = await connection.execute(
            sql.SQL("SELECT {}._lose_alone(%s, %s, %s, %s, true)").format(self._schema),
            (lease.topic, lease.key, lease.epoch, encodable(error, connection.info)),
        )
        row = await cursor.fetchone()
        assert row is not None  # noqa: S101 - for mypy: the function returns one row
        outcome: str = row[0]
        return outcome

    async def announce_sleep(self, connection: Connection, topics: list[str]) -> datetime:
        """Have appends notify this process for a while; return the database's time."""
        cursor = await connection.execute(
            sql.SQL("SELECT clock_timestamp(), {}.announce_sleep(%s)").format(self._schema), (topics,)
        )
        row = await cursor.fetchone()
        assert row is not None  # noqa: S101 - for mypy: one row
        looked_at: datetime = row[0]
        return looked_at

    async def seconds_to_next_ready(
        self, connection: Connection, topics: list[str], since: datetime
    ) -> float | None:
        """Return how long until the next key of these topics is ready; None when none is due."""
        cursor = await connection.execute(
            sql.SQL("SELECT extract(epoch FROM {}.next_ready(%s, %s) - clock_timestamp())").format(
                self._schema
            ),
            (topics, since),
        )
        row = await cursor.fetchone()
        return None if row is None or row[0] is None else max(float(row[0]), 0.0)
