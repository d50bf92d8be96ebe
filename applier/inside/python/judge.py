"""Judge: what becomes of a command whose handler failed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psycopg

from inturn.applier import calls
from inturn.applier.breaker import Breaker, is_outage
from inturn.applier.command import ClaimedCommand
from inturn.applier.failure import describe
from inturn.applier.handlers import NoHandler
from inturn.applier.inside.python.turn import Turn
from inturn.applier.inside.session import session_of
from inturn.applier.verdict import Outage, Requested, asked
from inturn.schema.version import check_after

#: How long a command waits that no handler takes, while another process serves the topic.
NO_HANDLER_WAIT = "5 seconds"


@dataclass(frozen=True, slots=True)
class Judge:
    """The judge of one topic and one applier."""

    schema: str
    topic: str
    applier_id: str
    breaker: Breaker

    def judge(
        self, connection: psycopg.Connection[Any], turn: Turn, order: ClaimedCommand, error: BaseException
    ) -> None:
        """Note that a command failed, and what becomes of it.

        Raises:
            SchemaMismatch: it failed because the schema was upgraded meanwhile.
        """
        turn.took = time.monotonic() - turn.begun_at
        if isinstance(error, psycopg.Error):  # a handler's own SchemaMismatch is about another database
            check_after(error, connection, self.schema)
        turn.failed, turn.error, turn.asked = order, describe(error), asked(error)
        if isinstance(error, NoHandler):
            if self._has_others(connection):
                # A deployment is under way: another process may know the command.
                turn.asked = Requested(Outage.sqlstate, NO_HANDLER_WAIT)
        elif turn.asked.sqlstate is None and is_outage(error):
            if not self.breaker.failed(turn.key, turn.error, probe=self.breaker.is_probing):
                turn.asked = Requested(Outage.sqlstate)
        elif not turn.asked.outage:
            self.breaker.succeeded()

    def _has_others(self, connection: psycopg.Connection[Any]) -> bool:
        """Return whether an applier of another process serves the topic."""
        return session_of(connection).call(
            calls.appliers.has_others(self.schema, self.topic, self.applier_id)
        )
