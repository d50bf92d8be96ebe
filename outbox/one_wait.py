"""One wait: what to ask the database next, how long to sleep before, and what the answers mean."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from inturn.outbox.bounded import Guard
from inturn.outbox.drivers import cause_of, database_errors
from inturn.outbox.statement import check_place, check_seq
from inturn.schema.advice import advised
from inturn.schema.errors import KeyHeld, NotApplied, WaitTimedOut, WrongIsolation, from_database
from inturn.schema.source import check_schema_name

#: As a wait is announced for 20 s. Then it looks again too: a notification is only a hint.
ANNOUNCE_SECONDS = 10.0
_FIRST_PROBE, _LONGEST_PROBE, _LONGEST_DEAF = 0.01, 1.0, 0.1

_LOOK = """SELECT seq, mark, outcome, applied_seq, skipped, state, since, in_hand, says
FROM "{schema}".wait_state(
    {topic}, {key}, CAST({seq} AS bigint), {idempotency_key}, CAST({mark} AS bigint))"""
_ANNOUNCE = 'SELECT "{schema}".announce_wait({topic}, {key})'


@dataclass(frozen=True, slots=True)
class Waited:
    """What a wait found.

    Attributes:
        applied_seq: where the key stands: every command up to this seq has taken effect or was skipped.
        skipped: whether the command that you waited for was itself skipped, so that it never took effect.
    """

    applied_seq: int
    skipped: bool


@dataclass(frozen=True, slots=True)
class Fetch:
    """Run a statement in a transaction of its own; the answer is its row.

    Attributes:
        template: the statement, with {name} where a parameter goes.
        parameters: their values.
    """

    template: str
    parameters: dict[str, Any]

    def written(self, place: str) -> str:
        """Return the statement with its parameters' places as a driver has them, `%({})s` or `:{}`."""
        return self.template.format(**{name: place.format(name) for name in self.parameters})


@dataclass(frozen=True, slots=True)
class CanListen:
    """The answer is whether the session can LISTEN, and would take nothing away from anybody by it."""


@dataclass(frozen=True, slots=True)
class Listen:
    """LISTEN on a channel from now on."""

    channel: str


@dataclass(frozen=True, slots=True)
class Sleep:
    """Sleep that many seconds, at least `least`, or until something comes from the channel."""

    seconds: float
    least: float


_Problem = TypeVar("_Problem", bound=NotApplied)
Step: TypeAlias = "Fetch | CanListen | Listen | Sleep"


@dataclass(slots=True)
class OneWait:
    """A wait for a key. It may go on over another connection: what it has found out stays.

    Args:
        timeout: seconds from now on; None or infinity: for ever.

    Raises:
        ValueError: the timeout is below 0 or not a number.
        UnknownTopic, KeyRefused, SeqRefused, IdempotencyKeyRefused: it cannot be sent to PostgreSQL at all.
    """

    topic: str
    key: str
    seq: int | None
    timeout: float | None
    idempotency_key: str | None
    schema: str
    _mark: int | None = None
    _in_hand: bool = False
    _began_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.timeout is not None and not self.timeout >= 0:
            raise ValueError(f"timeout is {self.timeout}; give seconds, 0 or more, or None to wait for ever")
        check_place(self.topic, self.key, self.idempotency_key)
        check_seq(self.seq, self.topic, self.key, least=0)
        check_schema_name(self.schema)

    def remaining(self) -> float:
        """Return the seconds until the time is over; infinity where there is no timeout."""
        return (math.inf if self.timeout is None else self.timeout) - self._elapsed()

    def timed_out(self, why: str) -> WaitTimedOut:
        """Return what is raised where the time is over and nothing was found out of the key."""
        return self._problem(
            WaitTimedOut, f"key {self.key!r} of topic {self.topic!r} is not known to be applied: {why}"
        )

    def steps(self) -> Generator[Step, Any, Waited]:
        """Yield what is to be done next, and take its answer; return what the wait found.

        Raises:
            KeyHeld, WaitTimedOut: see there.
        """
        done = self._read((yield self._look()))
        can_listen = done is None and (yield CanListen())
        while done is None:
            listening = False
            probe, renew_at = _FIRST_PROBE, time.monotonic() + ANNOUNCE_SECONDS
            if can_listen and (channel := (yield self._fetch(_ANNOUNCE))[0]) is not None:
                # Announced, listening, and only then looking: whatever moves the key later notifies.
                yield Listen(channel)
                listening = True
                done = self._read((yield self._look()))
            while done is None and time.monotonic() < renew_at:
                if not listening:
                    seconds = min(max(self._elapsed() / 8, _FIRST_PROBE), _LONGEST_PROBE)
                elif self._in_hand:
                    # Whoever has it in hand may have looked for waiters before: until that has ended.
                    seconds, probe = probe, probe * 2
                else:
                    seconds = ANNOUNCE_SECONDS
                seconds = max(min(seconds, renew_at - time.monotonic(), self.remaining()), 0)
                yield Sleep(seconds, min(seconds, self._elapsed() / 16, _LONGEST_DEAF))
                done = self._read((yield self._look()))
        return done

    def _elapsed(self) -> float:
        return time.monotonic() - self._began_at

    def _look(self) -> Fetch:
        return self._fetch(_LOOK)

    def _fetch(self, statement: str) -> Fetch:
        values = {
            "topic": self.topic,
            "key": self.key,
            "seq": self.seq,
            "idempotency_key": self.idempotency_key,
            "mark": self._mark,
        }
        known = {name: value for name, value in values.items() if f"{{{name}}}" in statement}
        return Fetch(statement.replace("{schema}", self.schema), known)

    def _read(self, row: tuple[Any, ...]) -> Waited | None:
        outcome: str
        says: str
        since: datetime | None
        is_over = self.remaining() <= 0
        self.seq, self._mark, outcome, applied_seq, skipped, state, since, self._in_hand, says = row
        if outcome == "applied":
            return Waited(applied_seq, skipped)
        if outcome != "held" and not is_over:
            return None
        kind = KeyHeld if outcome == "held" else WaitTimedOut
        raise self._problem(kind, says, applied_seq=applied_seq, state=state, since=since)

    def _problem(self, kind: type[_Problem], says: str, **known: Any) -> _Problem:
        hint = advised(kind.default_hint, self.schema)
        return kind(says, hint=hint, topic=self.topic, key=self.key, seq=self.seq, **known)


def in_transaction(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Return whether the connection is in a transaction."""
    return connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)


def refuse_transaction(is_open: bool, task: OneWait) -> None:
    """Raise WrongIsolation where the connection is in a transaction."""
    if is_open:
        raise WrongIsolation(
            "wait was called on a connection in a transaction, which cannot see what is applied from now on",
            hint="Commit first: what it appended is applied only then. Then wait",
            topic=task.topic,
            key=task.key,
            seq=task.seq,
        )


@contextmanager
def errors_of(task: OneWait, guard: Guard | None = None) -> Iterator[None]:
    """Raise what the database says as one of our errors, where it is one.

    Args:
        guard: of the connection; where it has struck, the time is over.
    """
    try:
        yield
    except database_errors() as error:
        if guard is not None and guard.struck:
            raise task.timed_out("the database has not answered in time") from error
        known = from_database(cause_of(error), topic=task.topic, key=task.key)
        if known is None:
            raise
        known.seq = task.seq
        raise known from error


class Ear:
    """What a connection of psycopg listens to, and whether it has heard anything."""

    def __init__(self, *, autocommit: bool) -> None:
        self._autocommit = autocommit
        self._channel: str | None = None
        self._heard = False

    def _hear(self, _: psycopg.Notify) -> None:
        self._heard = True

    @contextmanager
    def _hearing(self, connection: Any) -> Iterator[None]:
        # What comes while a statement runs, psycopg gives to its handlers; where there are none it keeps it
        # (from 3.2.4 on): without a channel of ours it is the caller's.
        if self._channel is None:
            yield
            return
        connection.add_notify_handler(self._hear)
        try:
            yield
        finally:
            connection.remove_notify_handler(self._hear)
