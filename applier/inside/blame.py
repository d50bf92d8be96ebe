"""Blame: charges a command that was taken alone and does not return, from another thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from inturn.applier import calls
from inturn.applier.calls.call import Call
from inturn.applier.command import ClaimedCommand


@dataclass(frozen=True, slots=True)
class Blame:
    """What a command is charged with that was taken alone, and whose session is ended because of it.

    It is noted first: once the session has ended, another claim may be quicker than `charge`. No statement
    here waits for long, as every other handler has to be watched.
    """

    schema: str
    order: ClaimedCommand
    timeout: float

    @property
    def error(self) -> str:
        return f"the command took longer than its topic's timeout of {self.timeout:g} s, and goes on"

    def note(self, connection: psycopg.Connection[Any]) -> None:
        """Note it, while the session goes on; whoever finds the key charges it.

        Raises:
            psycopg.Error: the connection or the database failed.
        """
        order = self.order
        call = calls.lease.blame_alone(self.schema, order.topic, order.key, order.epoch, self.error)
        self._run(connection, call)

    def charge(self, connection: psycopg.Connection[Any]) -> None:
        """Charge it at once, if nobody else was quicker and nobody has the key locked.

        Raises:
            psycopg.Error: the connection or the database failed.
        """
        order = self.order
        call = calls.lease.lose_alone(
            self.schema, order.topic, order.key, order.epoch, self.error, is_clear=True
        )
        self._run(connection, call)

    def _run(self, connection: psycopg.Connection[Any], call: Call[Any]) -> None:
        # In a transaction: through a pooler a setting of the session would stay behind for others.
        with connection.transaction():
            calls.session.bound().on(connection)
            call.on(connection)
