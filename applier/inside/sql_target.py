"""SqlTarget: applies the commands of a topic by a SQL function; the database does the whole batch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg

from inturn.applier import calls
from inturn.applier.breaker import Breaker
from inturn.applier.inside.alone import Alone, hold, take_alone
from inturn.applier.inside.batch import Batch
from inturn.applier.inside.session import Session, session_of
from inturn.applier.stop import Stop
from inturn.applier.verdict import NOTHING, Outage, Requested

#: As in apply_batch and _apply_alone: after how many seconds they begin no further command.
LONGEST_TURN_SECONDS = 1.0


class _Cut(Exception):
    """The grace time is over: what was done is rolled back."""


@dataclass(frozen=True, slots=True)
class SqlTarget:
    """A topic whose commands a SQL function applies: the database does the whole batch.

    What looks like an outage of something that commands need is recorded from here, before the commit: as an
    attempt or not, as the breaker says, which the workers of a process share.
    """

    topic: str
    schema: str
    applier_id: str
    stop: Stop
    breaker: Breaker = field(default_factory=Breaker)
    timeout: float | None = None

    def apply_batch(self, connection: psycopg.Connection[Any], since: datetime | str, max_keys: int) -> Batch:
        """Claim ready keys, apply their commands, end their turns, all in one transaction."""
        session = session_of(connection)
        call = calls.sql_target.apply_batch(
            self.schema, self.topic, since, max_keys, self.applier_id, session.pinned
        )
        with connection.transaction():
            session.limit(self._limit)
            done = session.ask(call, self.topic)
            if self.stop.expired:
                raise _Cut
            skipped = done.skipped + self._fail(session, done.outages)
        if not done.keys:
            return Batch()
        self._tell(done)
        # How many of several turns found nothing, the database does not say.
        nothing = not done.redo and not done.commands + done.failures + skipped
        return Batch(
            keys=done.keys,
            commands=done.commands,
            failures=done.failures,
            redo=done.redo,
            hand=done.hand,
            skipped=skipped,
            target_seconds=done.target_seconds,
            lost=done.lost,
            empty=done.keys if nothing else 0,
        )

    def apply_alone(self, connection: psycopg.Connection[Any], since: datetime | str) -> Batch:
        """Claim one ready key by a short lease and take its turn; see take_alone."""
        # Before the claim, so that no key is charged with a target that is another kind by now.
        session_of(connection).ask(calls.sql_target.require_sql_topic(self.schema, self.topic), self.topic)
        return take_alone(self, connection, since)

    def turn_alone(self, connection: psycopg.Connection[Any], alone: Alone) -> Batch:
        """Apply the commands of a key that was claimed alone; see AloneTarget."""
        session = session_of(connection)
        started_at = time.monotonic()
        with connection.transaction():
            most = hold(connection, alone)
            alone.is_shared = most > 1  # the database does not say how many of them it has begun
            session.limit(self._limit)
            place = (self.schema, self.topic, alone.key, alone.epoch)
            call = calls.sql_target.apply_alone(*place, most, session.pinned)
            done = session.call(call)
            if self.stop.expired:
                raise _Cut
            skipped = done.skipped + sum(self._fail_alone(session, down) for down in done.outages)
        self._tell(done)
        return Batch(
            keys=1,
            commands=done.commands,
            failures=done.failures,
            hand=alone.ready_at,
            skipped=skipped,
            target_seconds=time.monotonic() - started_at,
            empty=int(not done.commands + done.failures + skipped),
        )

    def _fail(self, session: Session, downs: list[calls.sql_target.Down]) -> int:
        """Record commands that failed by outages; return how many were skipped because of it."""
        if not downs:
            return 0
        judged = [(down, self._counts(down)) for down in downs]
        return session.call(calls.sql_target.fail_outages(self.schema, self.topic, judged, self.applier_id))

    def _fail_alone(self, session: Session, down: calls.sql_target.Down) -> int:
        place = (self.schema, self.topic, down.key, down.epoch, down.failed_seq - 1)
        asked = NOTHING if self._counts(down) else Requested(Outage.sqlstate)
        outcome = session.call(calls.lease.fail_alone(*place, down.error, asked, down.took))
        if outcome not in {"skipped", "cancelled"}:
            return 0
        return session.call(
            calls.turn.count_skipped(self.schema, self.topic, down.key, down.failed_seq, down.epoch)
        )

    def _counts(self, down: calls.sql_target.Down) -> bool:
        """Note an outage; return whether it is an attempt: while the breaker is open, none is."""
        return self.breaker.failed(down.key, down.error, probe=self.breaker.is_probing)

    def _tell(self, done: calls.sql_target.Applied | calls.sql_target.AppliedAlone) -> None:
        """Tell the breaker that what commands need answers: one took effect, or failed for its own reason."""
        if done.commands or done.answered:
            self.breaker.succeeded()

    @property
    def _limit(self) -> float | None:
        """How long a statement of many commands may take: none of them is begun after a second."""
        return None if self.timeout is None else self.timeout + LONGEST_TURN_SECONDS
