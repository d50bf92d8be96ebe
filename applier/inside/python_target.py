"""PythonTarget: applies the commands of a topic by handlers, in the transaction of their turns."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg

from inturn.applier import pacing
from inturn.applier.breaker import Breaker
from inturn.applier.failure import log_failure, on_one_line
from inturn.applier.handlers import Applier
from inturn.applier.inside.alone import Alone, hold, is_cut, is_transient, take_alone
from inturn.applier.inside.batch import Batch
from inturn.applier.inside.hand import Hand
from inturn.applier.inside.python.handler_calls import HandlerCalls, Violated
from inturn.applier.inside.python.judge import Judge
from inturn.applier.inside.python.narrowing import Narrowing
from inturn.applier.inside.python.turn import CommandFailed, HandlerBrokeTransaction, Lost, Redo, Turn
from inturn.applier.inside.python.turn_records import TurnRecords
from inturn.applier.inside.session import session_of
from inturn.applier.process.failure_log import FAILURES
from inturn.applier.stop import Stop
from inturn.schema.errors import Fenced

#: After how many seconds a turn begins no further command: an operator who pauses a key waits for the command
#: in hand, not for everything pending.
LONGEST_TURN_SECONDS = 1.0

#: A turn of more commands may be left for a transaction of its own.
_SHORT_TURN = 10


@dataclass(frozen=True, slots=True)
class PythonTarget:
    """A topic whose commands Python handlers apply."""

    topic: str
    applier: Applier
    stop: Stop
    schema: str
    applier_id: str
    breaker: Breaker = field(default_factory=Breaker)
    timeout: float | None = None
    #: What is watched by whoever can do something about a handler that never returns.
    hand: Hand = field(default_factory=Hand)
    merges: bool = False

    def apply_batch(self, connection: psycopg.Connection[Any], since: datetime | str, max_keys: int) -> Batch:
        """Claim ready keys, apply their commands, end their turns, all in one transaction.

        Args:
            connection: in autocommit, with isolation level READ COMMITTED.
            since: the clock hand: claim keys that became ready then or later.
            max_keys: the most keys that share the transaction.

        Raises:
            psycopg.Error: the connection or the database failed; nothing was changed.
        """
        turns: list[Turn] = []
        seconds, session, began_at = 0.0, session_of(connection), time.monotonic()
        try:
            with session.transaction(connection):
                if self.merges:  # a function that merges commands may hang as a handler may
                    session.limit(self.timeout)
                turns = self._records.claim(connection, since, max_keys)
                if not turns:
                    return Batch()
                started_at = time.monotonic()
                session.limit(self.timeout)
                self._apply(connection, turns, session.begin_until(began_at, LONGEST_TURN_SECONDS))
                seconds = time.monotonic() - started_at
                self._records.end(connection, turns)
        except Lost as lost:
            return Batch(keys=lost.keys, redo=True, lost=True, hand=lost.ready_at)
        except Redo as redo:
            return Batch(keys=redo.keys, redo=True)
        except psycopg.DatabaseError as error:
            # A handler ended the transaction and began another. Alone, it is found out.
            if error.sqlstate != Fenced.sqlstate or len(turns) == 1:
                raise
            return Batch(keys=len(turns), redo=True)
        except HandlerBrokeTransaction as error:
            return self._fail_broken(connection, turns, error)
        self._tell(turns)
        return _batch_of(turns, seconds, session.trips.slowness)

    def _fail_broken(
        self, connection: psycopg.Connection[Any], turns: list[Turn], error: HandlerBrokeTransaction
    ) -> Batch:
        """Record the failure of a key whose handler has ended the transaction of these turns.

        The claim went with the transaction. Of the other keys nothing is recorded: they are claimed again.
        So is that key, alone, where somebody else has it and takes long.
        """
        broken = next(turn for turn in turns if turn.key == error.key)
        try:
            self._records.fail_alone(connection, broken, error)
        except psycopg.Error as refused:
            if self.stop.expired or not (is_cut(refused) or is_transient(refused)):
                raise
            # Whoever has it locked may have it for long. As soon as it can be claimed alone, it is found out.
            FAILURES.log(
                logging.WARNING,
                "a failure was not recorded, as somebody has its key",
                on_one_line(error),
                {"topic": self.topic, "key": broken.key},
            )
            return Batch(keys=len(turns), redo=True, lost=True, hand=broken.ready_at)
        self._tell([broken])
        return dataclasses.replace(_batch_of([broken], 0.0), hand=turns[0].ready_at)

    def apply_alone(self, connection: psycopg.Connection[Any], since: datetime | str) -> Batch:
        """Claim one ready key by a short lease and take its turn; see take_alone."""
        return take_alone(self, connection, since)

    def turn_alone(self, connection: psycopg.Connection[Any], alone: Alone) -> Batch:
        """Apply the commands of a key that was claimed alone; see AloneTarget."""
        started_at = time.monotonic()
        with connection.transaction():
            hold(connection, alone)
            session_of(connection).limit(self.timeout)  # what merges commands may hang as a handler may
            turn = self._records.hold(connection, alone)
            if turn is None:
                return Batch(keys=1, failures=1, hand=alone.ready_at)
            leave_at = session_of(connection).begin_until(started_at, LONGEST_TURN_SECONDS)
            expected = turn.applied_seq
            for order in turn.orders:
                if turn.failed is not None or turn.done_seq < expected:
                    break  # the one before failed, or its end was cut short
                expected, alone.is_shared = order.seq, order is not turn.orders[0]
                if (alone.is_shared and time.monotonic() > leave_at) or self.stop.requested:
                    break
                try:
                    self._calls.run_undoable(connection, turn, [order], pacing.NEVER, check_each=True)
                except CommandFailed as failure:
                    self._judge.judge(connection, turn, order, failure.__cause__ or failure)
                except psycopg.errors.InvalidSavepointSpecification as error:
                    raise self._calls.broke(order) from error
            seconds = time.monotonic() - started_at
            self._records.end_alone(connection, turn)
        self._tell([turn])
        return _batch_of([turn], seconds)

    def _apply(self, connection: psycopg.Connection[Any], turns: list[Turn], leave_at: float) -> None:
        fresh = [turn for turn in turns if turn.attempt == 1]
        if len(fresh) > 1:
            # No savepoints: when one of them fails, all are undone and taken again one by one.
            try:
                self._apply_together(connection, fresh, leave_at)
            except CommandFailed as failure:
                raise Redo(len(turns)) from failure
        for turn in turns if len(fresh) <= 1 else [turn for turn in turns if turn.attempt > 1]:
            if self.applier.find_batch(self.topic) is not None:
                Narrowing(self._calls, self._judge).apply(connection, turn, leave_at)
            else:
                self._apply_alone(connection, turn, leave_at)

    def _apply_together(
        self, connection: psycopg.Connection[Any], turns: list[Turn], leave_at: float
    ) -> None:
        """Apply turns of several keys, the long ones last; leave those that would hold up the others' commit.

        Those are taken in transactions of their own afterwards. The others tell how long one takes.
        A short one is never left: on a busy machine each would seem to take long, and a commit each makes it
        busier.
        """
        started_at, commands = time.monotonic(), 0
        for turn in sorted(turns, key=lambda turn: len(turn.orders) > _SHORT_TURN):
            seconds = time.monotonic() - started_at
            if commands and len(turn.orders) > _SHORT_TURN:
                turn.left = seconds + len(turn.orders) * seconds / commands > pacing.BATCH_SECONDS
            if turn.left:
                continue
            self._calls.run(connection, turn, turn.orders, leave_at)
            commands += len(turn.orders)

    def _apply_alone(self, connection: psycopg.Connection[Any], turn: Turn, leave_at: float) -> None:
        """Apply a turn under a savepoint; what came before a failing command runs again.

        Deferred constraints are checked once, after the last command. Where one is violated, the turn runs
        again with a check after each command, which costs a round trip each.
        """
        orders, each = turn.orders, False
        while orders:
            try:
                self._calls.run_undoable(connection, turn, orders, leave_at, check_each=each)
            except Violated:
                # However long the first run took, this one has to reach the command that is to be charged.
                orders = [order for order in orders if order.seq <= turn.done_seq]
                turn.done_seq, each, leave_at = turn.applied_seq, True, pacing.NEVER
            except CommandFailed as failure:
                turn.done_seq = turn.applied_seq
                self._judge.judge(connection, turn, failure.order, failure.__cause__ or failure)
                # The second run has to reach the failed command, or its failure would not be recorded.
                orders, leave_at = orders[: failure.index], pacing.NEVER
            except psycopg.errors.InvalidSavepointSpecification as error:
                raise self._calls.broke(orders[-1]) from error
            else:
                if turn.failed is not None and orders and turn.done_seq < orders[-1].seq:
                    # A stop cut the second run short: the failed command is not next yet, and to
                    # record its failure would pass over those in between.
                    turn.failed = None
                return

    def _tell(self, turns: list[Turn]) -> None:
        """Log the failures of turns that were committed, and tell the breaker that commands took effect."""
        for turn in turns:
            if turn.failed is not None:
                log_failure(turn.failed, turn.error, turn.asked, turn.outcome, by=" by its handler")
        if any(turn.done_seq > turn.applied_seq for turn in turns):
            self.breaker.succeeded()

    @property
    def _records(self) -> TurnRecords:
        return TurnRecords(self.schema, self.topic, self.applier_id)

    @property
    def _calls(self) -> HandlerCalls:
        return HandlerCalls(self.applier, self.stop, self.schema, self.timeout, self.hand)

    @property
    def _judge(self) -> Judge:
        return Judge(self.schema, self.topic, self.applier_id, self.breaker)


def _batch_of(claimed: list[Turn], seconds: float, slowness: float = 1.0) -> Batch:
    left = [turn for turn in claimed if turn.left]
    turns = [turn for turn in claimed if not turn.left]
    return Batch(
        keys=len(turns),
        left=len(left),
        commands=sum(turn.reached - turn.applied_seq for turn in turns),
        failures=sum(turn.failed is not None and not turn.asked.skip for turn in turns),
        hand=left[0].ready_at if left else turns[-1].ready_at,
        skipped=sum(turn.skipped for turn in turns),
        target_seconds=seconds,
        slowness=slowness,
        empty=sum(not turn.orders for turn in turns),
        handled=[call for turn in turns for call in turn.handled.values()],
    )
