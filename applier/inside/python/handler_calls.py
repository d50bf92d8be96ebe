"""HandlerCalls: calls the handlers of commands, and checks what each leaves behind."""

from __future__ import annotations

import decimal
import sys
import time
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from inturn.applier import calls
from inturn.applier.command import ClaimedCommand, handling
from inturn.applier.handlers import Applier, count_done, refuse_unrun
from inturn.applier.inside.batch import Handled
from inturn.applier.inside.hand import Hand
from inturn.applier.inside.python import left_open
from inturn.applier.inside.python.turn import CommandFailed, HandlerBrokeTransaction, Turn
from inturn.applier.inside.session import session_of
from inturn.applier.stop import Stop


def _is_stale(error: BaseException) -> bool:
    """Return whether a statement that the driver had prepared failed because what it reads was altered since.

    Whatever the driver has prepared it forgets when it rolls back. By where the server said it: the message
    is in the server's language.
    """
    return any(
        isinstance(each, psycopg.errors.FeatureNotSupported)
        and each.diag.source_function == "RevalidateCachedQuery"
        for each in left_open.behind(error)
    )


class Violated(Exception):
    """One of several commands has violated a deferred constraint."""


def _own_context() -> Context:
    """Return a context for one call: what it sets there is not set for the next one in the thread."""
    context = copy_context()
    context.run(decimal.setcontext, decimal.getcontext().copy())  # whose precision is changed in place
    return context


def _is_open(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the connection is in a transaction, failed or not."""
    return connection.info.transaction_status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}


@dataclass(frozen=True, slots=True)
class HandlerCalls:
    """The calls that one worker makes for one topic."""

    applier: Applier
    stop: Stop
    schema: str
    timeout: float | None
    hand: Hand

    def run(
        self,
        connection: psycopg.Connection[Any],
        turn: Turn,
        orders: list[ClaimedCommand],
        leave_at: float,
        *,
        check: bool = False,
    ) -> None:
        """Call the handlers of commands in order, and note in the turn how far that came.

        A batch handler is called once, with all of them.

        Args:
            leave_at: when, by time.monotonic(), no further one is begun.
            check: the deferred constraints after each call.

        Raises:
            CommandFailed: one failed, for whatever reason that is the command's; of a batch: the first.
            HandlerBrokeTransaction: one of them has ended the transaction.
        """
        session = session_of(connection)
        for index, called in enumerate(self._split(orders)):
            # What a command has left in the session must not meet another one: that is for a new connection.
            if self.stop.requested or session.worn or time.monotonic() > leave_at:
                return
            try:
                done = self._call(connection, turn, called)
                if check:
                    self._check_effects(connection)
            except HandlerBrokeTransaction:
                raise
            except BaseException as error:
                # A lost connection and the end of the grace time are not failures of the command.
                if connection.broken or connection.closed or self.stop.expired:
                    raise
                if not _is_open(connection):
                    raise self.broke(called[0]) from error
                raise CommandFailed(index, called[0]) from error
            turn.done_seq = called[done - 1].seq

    def run_undoable(
        self,
        connection: psycopg.Connection[Any],
        turn: Turn,
        orders: list[ClaimedCommand],
        leave_at: float,
        *,
        check_each: bool,
    ) -> None:
        """Do as `run`, under a savepoint; once more after a migration, of which no command is at fault.

        Args:
            check_each: the deferred constraints are checked after each call; otherwise once, at the end.

        Raises:
            CommandFailed, HandlerBrokeTransaction: as `run`.
            Violated: one of several commands violates a deferred constraint.
        """
        done_seq = turn.done_seq
        for is_last in (False, True):
            try:
                with connection.transaction():
                    self.run(connection, turn, orders, leave_at, check=check_each)
                    if not check_each:
                        self.check_all(connection, orders)
            except CommandFailed as failure:
                if is_last or not _is_stale(failure):
                    raise
                turn.done_seq = done_seq
            else:
                return

    def _split(self, orders: list[ClaimedCommand]) -> list[list[ClaimedCommand]]:
        """Return what each call gets: a command, or all of them for a batch handler."""
        if orders and self.applier.find_batch(orders[0].topic) is not None:
            return [orders]
        return [[order] for order in orders]

    def _call(self, connection: psycopg.Connection[Any], turn: Turn, orders: list[ClaimedCommand]) -> int:
        """Read payloads and call the handler: only this code depends on data.

        Returns:
            how many of the commands took effect: the only one, or those that a batch handler says.
        """
        session, turn.begun_at = session_of(connection), time.monotonic()
        commands = [order.read(self.applier.parse_float) for order in orders]
        batch = self.applier.find_batch(orders[0].topic)
        began_at, started_at = time.time(), time.monotonic()
        blocks = left_open.blocks(connection)
        try:
            with (
                self.hand.holding(orders[0], self.timeout, is_alone=turn.is_alone),
                handling(*commands),
            ):
                context = _own_context()
                if batch is not None:
                    result: object = context.run(batch, connection, commands)
                else:
                    result = context.run(self.applier.find(commands[0]), connection, commands[0])
        finally:
            share = (time.monotonic() - started_at) / len(orders)
            turn.handled |= {order.seq: Handled(order, began_at, share) for order in orders}
            if left := left_open.free(connection, blocks, sys.exception()):
                session.worn = session.spent = True
            session.restore(connection)
        if left:
            raise psycopg.ProgrammingError("the handler left a block of connection.transaction() open")
        refuse_unrun(result)
        self._check_transaction(connection, orders[0])
        session.put_back(connection)
        return count_done(result, len(orders)) if batch is not None else 1

    def _check_effects(self, connection: psycopg.Connection[Any]) -> None:
        session_of(connection).call(calls.turn.check_effects(self.schema))

    def check_all(self, connection: psycopg.Connection[Any], orders: list[ClaimedCommand]) -> None:
        """Check what the commands of a turn did, all together.

        Raises:
            CommandFailed: it was one command, and that violates a constraint.
            Violated: there were several, so it is not known which one violates it.
        """
        try:
            self._check_effects(connection)
        except psycopg.Error as error:
            if connection.broken or connection.closed or self.stop.expired:
                raise
            if len(orders) == 1:
                raise CommandFailed(0, orders[0]) from error
            raise Violated from error

    def _check_transaction(self, connection: psycopg.Connection[Any], order: ClaimedCommand) -> None:
        if connection.closed:
            raise psycopg.OperationalError(
                "the handler closed the connection, left a pipeline, a stream or a COPY open, or it was lost"
            )
        status = connection.pgconn.transaction_status  # connection.info makes an object of it each time
        if status == TransactionStatus.INERROR:
            raise psycopg.errors.InFailedSqlTransaction(
                "the handler returned although a statement of its had failed: "
                "it must raise, or run the statement in a savepoint (connection.transaction())"
            )
        if status != TransactionStatus.INTRANS:
            raise self.broke(order)

    def broke(self, order: ClaimedCommand) -> HandlerBrokeTransaction:
        """Return what is to be raised when a command, or one before it, has ended the transaction."""
        return HandlerBrokeTransaction(
            f"the handler of command {order.name!r}, or one before it, ended the transaction",
            hint="Its effects are not undone. Remove its COMMIT or ROLLBACK",
            topic=order.topic,
            key=order.key,
            seq=order.seq,
        )
