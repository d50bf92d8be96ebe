"""Narrowing: applies a key's commands by a batch handler, and finds the one that cannot take effect."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psycopg

from inturn.applier import pacing
from inturn.applier.command import ClaimedCommand
from inturn.applier.inside.python.handler_calls import HandlerCalls
from inturn.applier.inside.python.judge import Judge
from inturn.applier.inside.python.turn import CommandFailed, Turn

#: A turn makes no more calls than that: each has a savepoint, and more than 64 of them slow down every other
#: session.
MOST_CALLS = 50
#: After how many seconds a failed call is not made again with half of its commands, which may last as long,
#: but with the first one alone.
SLOW_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Narrowing:
    """The narrowing that one worker does for one topic."""

    calls: HandlerCalls
    judge: Judge

    def apply(self, connection: psycopg.Connection[Any], turn: Turn, leave_at: float) -> None:
        """Apply a turn: all of its commands in one call; where that fails, by calls with half as many.

        What fails alone is charged; what took effect before it stays. Each call has a savepoint, and the
        deferred constraints are checked after it.

        Args:
            leave_at: when, by time.monotonic(), no further call is made. Once one has failed, one is made
                until there is something to record: so every turn moves the key on, or charges a command.

        Raises:
            HandlerBrokeTransaction: a call has ended the transaction.
        """
        orders, size, has_failed = turn.orders, len(turn.orders), False
        for _ in range(MOST_CALLS):
            called = orders[:size]
            if not called:
                return
            started_at = time.monotonic()
            is_recordable = turn.done_seq > turn.applied_seq or not has_failed
            failure = self._call(connection, turn, called, leave_at if is_recordable else pacing.NEVER)
            if failure is None:
                if turn.done_seq < called[-1].seq:
                    return  # cut short by a stop, by the time, or by the handler's answer
                orders = orders[size:]
            elif len(called) == 1:
                self.judge.judge(connection, turn, called[0], failure)
                return
            else:
                has_failed = True
                size = 1 if time.monotonic() > started_at + SLOW_SECONDS else len(called) // 2

    def _call(
        self, connection: psycopg.Connection[Any], turn: Turn, orders: list[ClaimedCommand], leave_at: float
    ) -> BaseException | None:
        """Call the handler under a savepoint; return what it failed with."""
        try:
            self.calls.run_undoable(connection, turn, orders, leave_at, check_each=True)
        except CommandFailed as failure:
            return failure.__cause__ or failure
        except psycopg.errors.InvalidSavepointSpecification as error:
            raise self.calls.broke(orders[0]) from error
        return None
