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
from inturn.applier.inside.session import session_of
from inturn.applier.stop import Stop

#: As in apply_batch and _apply_alone: after how many seconds they begin no further command.
LONGEST_TURN_SECONDS = 1.0


class _Cut(Exception):
    """The grace time is over: what was done is rolled back."""


@dataclass(frozen=True, slots=True)
class SqlTarget:
    """A topic whose commands a SQL function applies: the database does the whole batch."""

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
            done = session.call(call)
            if self.stop.expired:
                raise _Cut
        if not done.keys:
            return Batch()
        # How many of several turns found nothing, the database does not say.
        nothing = not done.redo and not done.commands + done.failures + done.skipped
        return Batch(*done, empty=done.keys if nothing else 0)

    def apply_alone(self, connection: psycopg.Connection[Any], since: datetime | str) -> Batch:
        """Claim one ready key by a short lease and take its turn; see take_alone."""
        # Before the claim, so that no key is charged with a target that is another kind by now.
        session_of(connection).call(calls.sql_target.require_sql_topic(self.schema, self.topic))
        return take_alone(self, connection, since)

    def turn_alone(self, connection: psycopg.Connection[Any], alone: Alone) -> Batch:
        """Apply the commands of a key that was claimed alone; see AloneTarget."""
        session = session_of(connection)
        alone.is_shared = True  # the database does not say how many commands it begins
        call = calls.sql_target.apply_alone(self.schema, self.topic, alone.key, alone.epoch, session.pinned)
        started_at = time.monotonic()
        with connection.transaction():
            hold(connection, alone)
            session.limit(self._limit)
            commands, failures, skipped = session.call(call)
            if self.stop.expired:
                raise _Cut
        return Batch(
            keys=1,
            commands=commands,
            failures=failures,
            hand=alone.ready_at,
            skipped=skipped,
            target_seconds=time.monotonic() - started_at,
            empty=int(not commands + failures + skipped),
        )

    @property
    def _limit(self) -> float | None:
        """How long a statement of many commands may take: none of them is begun after a second."""
        return None if self.timeout is None else self.timeout + LONGEST_TURN_SECONDS
