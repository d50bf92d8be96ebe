"""PythonTarget: applies the commands of a topic by handlers, in the transaction of their turns."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from inturn.applier import calls
from inturn.applier.breaker import Breaker, is_outage
from inturn.applier.command import Order, handling
from inturn.applier.failure import describe, encodable, log_failure
from inturn.applier.handlers import Applier, NoHandler, refuse_unrun
from inturn.applier.inside.alone import Alone, take_alone
from inturn.applier.inside.batch import Batch
from inturn.applier.inside.hand import Hand
from inturn.applier.inside.session import session_of
from inturn.applier.inside.turn import CommandFailed, HandlerBrokeTransaction, Lost, Redo, Turn
from inturn.applier.stop import Stop
from inturn.applier.verdict import NOTHING, Asked, Outage, asked
from inturn.schema.errors import Fenced

log = logging.getLogger("inturn.applier")

#: Turns begin no further command once they have lasted so many seconds: an operator who pauses a key waits
#: for the command in hand, not for all that is pending.
LONGEST_TURN_SECONDS = 1.0
#: Of a key that is taken alone, at most so many commands: each has a savepoint of its own, and more than 64
#: of them slow down every other session.
MOST_COMMANDS_ALONE = 50
#: How long a command waits that no handler takes, while another process serves the topic.
NO_HANDLER_WAIT = "5 seconds"
_NEVER = float("inf")


class _Violated(Exception):
    """One of several commands has violated a deferred constraint."""


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
        seconds = 0.0
        try:
            with connection.transaction():
                turns = self._claim(connection, since, max_keys)
                if not turns:
                    return Batch()
                started_at = time.monotonic()
                session_of(connection).limit(self.timeout)
                self._apply(connection, turns)
                seconds = time.monotonic() - started_at
                self._end(connection, turns)
        except Lost as lost:
            return Batch(keys=lost.keys, redo=True, lost=True)
        except Redo:
            return Batch(keys=len(turns), redo=True)
        except psycopg.DatabaseError as error:
            # A handler ended the transaction and began another. Alone, it is found out.
            if error.sqlstate != Fenced.sqlstate or len(turns) == 1:
                raise
            return Batch(keys=len(turns), redo=True)
        except HandlerBrokeTransaction as error:
            # The claim went with the transaction: the failure is recorded in one of its own.
            turn = next(turn for turn in turns if turn.key == error.key)
            self._fail_alone(connection, turn, error)
        self._tell(turns)
        return Batch(
            keys=len(turns),
            commands=sum(turn.done_seq - turn.applied_seq for turn in turns),
            failures=sum(turn.failed is not None and not turn.asked.skip for turn in turns),
            hand=turns[-1].ready_at,
            skipped=sum(turn.skipped for turn in turns),
            target_seconds=seconds,
        )

    def apply_alone(self, connection: psycopg.Connection[Any], since: datetime | str) -> Batch:
        """Claim one ready key by a short lease and take its turn; see take_alone."""
        return take_alone(self, connection, since)

    def turn_alone(self, connection: psycopg.Connection[Any], alone: Alone) -> Batch:
        """Apply the commands of a key that was claimed alone; see AloneTarget."""
        started_at = time.monotonic()
        with connection.transaction():
            turn = self._hold(connection, alone)
            session_of(connection).limit(self.timeout)
            leave_at = time.monotonic() + LONGEST_TURN_SECONDS
            for order in turn.orders:
                if turn.failed is not None or turn.done_seq < order.seq - 1:
                    break  # it failed, or its end was cut short
                if time.monotonic() > leave_at or self.stop.requested:
                    break
                try:
                    with connection.transaction():
                        self._run(connection, turn, [order], _NEVER, check=True)
                except CommandFailed as failure:
                    self._judge(connection, turn, order, failure.__cause__ or failure)
                except psycopg.errors.InvalidSavepointSpecification as error:
                    raise self._broke(order) from error
            seconds = time.monotonic() - started_at
            self._end_alone(connection, turn)
        self._tell([turn])
        return Batch(
            keys=1,
            commands=turn.done_seq - turn.applied_seq,
            failures=int(turn.failed is not None and not turn.asked.skip),
            hand=alone.ready_at,
            skipped=turn.skipped,
            target_seconds=seconds,
        )

    def _hold(self, connection: psycopg.Connection[Any], alone: Alone) -> Turn:
        """Lock a key that was claimed alone, and read its next commands."""
        rows = session_of(connection).call(
            calls.lease.hold_lease(self.schema, self.topic, alone.key, alone.epoch, MOST_COMMANDS_ALONE)
        )
        applied_seq, attempt = rows[0][:2]
        turn = Turn(alone.key, applied_seq, alone.epoch, attempt, alone.ready_at, done_seq=applied_seq)
        turn.is_alone = True
        turn.orders = [
            Order(self.topic, alone.key, seq, name, payload, created_at, attempt, alone.epoch)
            for _, _, seq, name, payload, created_at in rows
            if seq is not None
        ]
        return turn

    def _end_alone(self, connection: psycopg.Connection[Any], turn: Turn) -> None:
        place = (self.schema, self.topic, turn.key, turn.epoch, turn.done_seq)
        if turn.failed is None:
            turn.outcome = session_of(connection).call(calls.lease.end_alone(*place))
            return
        error = encodable(turn.error, connection.info)
        turn.outcome = session_of(connection).call(calls.lease.fail_alone(*place, error, turn.asked))
        self._count_skipped(connection, turn, turn.failed)

    def _claim(self, connection: psycopg.Connection[Any], since: datetime | str, max_keys: int) -> list[Turn]:
        session = session_of(connection)
        rows = session.call(calls.turn.claim_commands(self.schema, self.topic, since, max_keys))
        if rows:
            session.check(rows[0].settings)
        turns: dict[str, Turn] = {}
        for key, applied_seq, epoch, attempt, ready_at, seq, name, payload, created_at, lost, _ in rows:
            if lost:
                raise Lost(len({row.key for row in rows}))
            turn = turns.get(key)
            if turn is None:
                turn = turns[key] = Turn(key, applied_seq, epoch, attempt, ready_at, done_seq=applied_seq)
            if seq is not None:
                turn.orders.append(Order(self.topic, key, seq, name, payload, created_at, attempt, epoch))
        return list(turns.values())

    def _apply(self, connection: psycopg.Connection[Any], turns: list[Turn]) -> None:
        leave_at = time.monotonic() + LONGEST_TURN_SECONDS
        fresh = [turn for turn in turns if turn.attempt == 1]
        if len(fresh) > 1:
            # No savepoints: when one of them fails, all are undone and taken again one by one.
            try:
                for turn in fresh:
                    self._run(connection, turn, turn.orders, leave_at)
            except CommandFailed as failure:
                raise Redo from failure
        for turn in turns if len(fresh) <= 1 else [turn for turn in turns if turn.attempt > 1]:
            self._apply_alone(connection, turn, leave_at)

    def _apply_alone(self, connection: psycopg.Connection[Any], turn: Turn, leave_at: float) -> None:
        """Apply a turn under a savepoint; what came before a failing command runs again.

        Deferred constraints are checked once, after the last command. Where one is violated, the turn runs
        again with a check after each command, which costs a round trip each.
        """
        orders, each = turn.orders, False
        while orders:
            try:
                with connection.transaction():
                    self._run(connection, turn, orders, leave_at, check=each)
                    if not each:
                        self._check_all(connection, orders)
            except _Violated:
                # However long the first run took, this one has to reach the command that is to be charged.
                orders = [order for order in orders if order.seq <= turn.done_seq]
                turn.done_seq, each, leave_at = turn.applied_seq, True, _NEVER
            except CommandFailed as failure:
                turn.done_seq = turn.applied_seq
                self._judge(connection, turn, failure.order, failure.__cause__ or failure)
                # The second run has to reach the failed command, or its failure would not be recorded.
                orders, leave_at = orders[: failure.index], _NEVER
            except psycopg.errors.InvalidSavepointSpecification as error:
                raise self._broke(orders[-1]) from error
            else:
                if turn.failed is not None and turn.done_seq < turn.failed.seq - 1:
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

    def _judge(
        self, connection: psycopg.Connection[Any], turn: Turn, order: Order, error: BaseException
    ) -> None:
        """Note that a command failed, and what becomes of it."""
        turn.failed, turn.error, turn.asked = order, describe(error), asked(error)
        if isinstance(error, NoHandler):
            if self._has_others(connection):
                # A deployment is under way: another process may know the command.
                turn.asked = Asked(Outage.sqlstate, NO_HANDLER_WAIT)
        elif turn.asked.sqlstate is None and is_outage(error):
            if not self.breaker.failed(turn.key, turn.error, probe=self.breaker.is_probing):
                turn.asked = Asked(Outage.sqlstate)
        elif not turn.asked.outage:
            self.breaker.succeeded()

    def _has_others(self, connection: psycopg.Connection[Any]) -> bool:
        """Return whether an applier of another process serves the topic."""
        return session_of(connection).call(
            calls.appliers.has_others(self.schema, self.topic, self.applier_id)
        )

    def _run(
        self,
        connection: psycopg.Connection[Any],
        turn: Turn,
        orders: list[Order],
        leave_at: float,
        *,
        check: bool = False,
    ) -> None:
        """Call the handlers of commands in order. check: the deferred constraints after each of them."""
        session = session_of(connection)
        for index, order in enumerate(orders):
            # What a command has left in the session must not meet another one: that is for a new connection.
            if self.stop.requested or session.worn or time.monotonic() > leave_at:
                return
            try:
                self._call(connection, turn, order)
                if check:
                    self._check_effects(connection)
            except HandlerBrokeTransaction:
                raise
            except BaseException as error:
                # A lost connection and an end of the grace time are no failures of the command.
                if connection.broken or connection.closed or self.stop.expired:
                    raise
                raise CommandFailed(index, order) from error
            turn.done_seq = order.seq

    def _call(self, connection: psycopg.Connection[Any], turn: Turn, order: Order) -> None:
        """Read a command's payload and call its handler: what depends on data runs nowhere else."""
        session = session_of(connection)
        command = order.read()
        try:
            with self.hand.holding(order, self.timeout, is_alone=turn.is_alone), handling(command):
                result = self.applier.find(command)(connection, command)
        finally:
            session.restore(connection)
        refuse_unrun(result)
        self._check_transaction(connection, order)
        session.put_back(connection)

    def _check_effects(self, connection: psycopg.Connection[Any]) -> None:
        session_of(connection).call(calls.turn.check_effects(self.schema))

    def _check_all(self, connection: psycopg.Connection[Any], orders: list[Order]) -> None:
        """Check what the commands of a turn did, all together.

        Raises:
            CommandFailed: it was one command, and that violates a constraint.
            _Violated: there were several, so it is not known which one violates it.
        """
        try:
            self._check_effects(connection)
        except psycopg.Error as error:
            if connection.broken or connection.closed or self.stop.expired:
                raise
            if len(orders) == 1:
                raise CommandFailed(0, orders[0]) from error
            raise _Violated from error

    def _check_transaction(self, connection: psycopg.Connection[Any], order: Order) -> None:
        if connection.closed:
            raise psycopg.OperationalError("the handler closed the connection, or it was lost")
        status = connection.info.transaction_status
        if status is TransactionStatus.INERROR:
            raise psycopg.errors.InFailedSqlTransaction(
                "the handler returned although a statement of its had failed: "
                "it must raise, or run the statement in a savepoint (connection.transaction())"
            )
        if status is not TransactionStatus.INTRANS:
            raise self._broke(order)

    def _broke(self, order: Order) -> HandlerBrokeTransaction:
        return HandlerBrokeTransaction(
            f"the handler of command {order.name!r}, or one before it, ended the transaction",
            hint="Its effects are not undone. Remove its COMMIT or ROLLBACK",
            topic=order.topic,
            key=order.key,
            seq=order.seq,
        )

    def _end(self, connection: psycopg.Connection[Any], turns: list[Turn]) -> None:
        for turn in turns:
            if turn.failed is not None:
                self._fail(connection, turn, turn.failed)
        done = [_done(turn) for turn in turns if turn.failed is None and not turn.untouched]
        if done:
            session_of(connection).call(calls.turn.finish(self.schema, self.topic, done, self.applier_id))

    def _fail(self, connection: psycopg.Connection[Any], turn: Turn, failed: Order) -> None:
        error = encodable(turn.error, connection.info)
        turn.outcome = session_of(connection).call(
            calls.turn.fail(
                self.schema, self.topic, _done(turn), failed.seq, error, turn.asked, self.applier_id
            )
        )
        self._count_skipped(connection, turn, failed)

    def _count_skipped(self, connection: psycopg.Connection[Any], turn: Turn, failed: Order) -> None:
        if turn.outcome in {"skipped", "cancelled"}:
            turn.skipped = session_of(connection).call(
                calls.turn.count_skipped(self.schema, self.topic, turn.key, failed.seq, turn.epoch)
            )

    def _fail_alone(
        self,
        connection: psycopg.Connection[Any],
        turn: Turn,
        error: HandlerBrokeTransaction,
    ) -> None:
        # What the turn did before was committed or rolled back with it: nobody can tell. The whole
        # turn counts as failed, so that nothing is lost.
        turn.done_seq = turn.applied_seq
        turn.failed = turn.orders[0]
        turn.error, turn.asked = describe(error), NOTHING
        with connection.transaction():
            claimed = session_of(connection).call(
                calls.turn.lock_ticket(self.schema, self.topic, turn.key, turn.epoch - 1)
            )
            # If it is gone, the next applier meets the same handler.
            if claimed:
                self._fail(connection, turn, turn.failed)


def _done(turn: Turn) -> calls.turn.Done:
    return calls.turn.Done(turn.key, turn.epoch, turn.applied_seq + 1, turn.done_seq)
