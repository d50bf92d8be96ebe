"""TurnRecords: claims turns for handlers in Python, and records how they ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from inturn.applier import calls
from inturn.applier.command import ClaimedCommand
from inturn.applier.failure import describe, encodable
from inturn.applier.inside.alone import Alone
from inturn.applier.inside.python.turn import HandlerBrokeTransaction, Lost, Redo, Turn
from inturn.applier.inside.session import session_of
from inturn.applier.verdict import NOTHING

#: The most commands of a key that is taken alone: each has a savepoint of its own, and more than 64 of them
#: slow down every other session.
MOST_COMMANDS_ALONE = 50


@dataclass(frozen=True, slots=True)
class TurnRecords:
    """The records that one applier makes for one topic."""

    schema: str
    topic: str
    applier_id: str

    def claim(self, connection: psycopg.Connection[Any], since: datetime | str, max_keys: int) -> list[Turn]:
        """Claim ready keys, in the transaction that is open.

        Raises:
            Lost: an applier was lost with one of them in hand.
            Redo: one of several took long before it failed: the others are not to wait for it.
            SessionChanged: the session is not as it was.
            OwnerChanged: the topic is refused.
        """
        session = session_of(connection)
        rows = session.ask(calls.turn.claim_commands(self.schema, self.topic, since, max_keys), self.topic)
        if rows:
            session.check(rows[0].settings)
        turns: dict[str, Turn] = {}
        for key, applied_seq, epoch, attempt, ready_at, seq, name, payload, created_at, lost, _ in rows:
            if lost:
                raise Lost(len({row.key for row in rows}), ready_at)
            turn = turns.get(key)
            if turn is None:
                turn = turns[key] = Turn(key, applied_seq, epoch, attempt, ready_at, done_seq=applied_seq)
            self._take_up(turn, seq, name, payload, created_at)
        if len(turns) > 1 and any(turn.attempt > 1 for turn in turns.values()):
            keys, epochs = list(turns), [turn.epoch for turn in turns.values()]
            attempts = [turn.attempt - 1 for turn in turns.values()]
            if session.call(calls.turn.took_long(self.schema, self.topic, keys, epochs, attempts)):
                raise Redo(len(turns))
        return list(turns.values())

    def hold(self, connection: psycopg.Connection[Any], alone: Alone) -> Turn | None:
        """Lock a key that was claimed alone, and read its next commands.

        None: they could not be merged, and the lease has ended with that.
        """
        rows = session_of(connection).call(
            calls.lease.hold_lease(self.schema, self.topic, alone.key, alone.epoch, MOST_COMMANDS_ALONE)
        )
        if not rows:
            return None
        applied_seq, attempt = rows[0][:2]
        turn = Turn(alone.key, applied_seq, alone.epoch, attempt, alone.ready_at, done_seq=applied_seq)
        turn.is_alone = True
        for _, _, seq, name, payload, created_at in rows:
            self._take_up(turn, seq, name, payload, created_at)
        return turn

    def _take_up(
        self, turn: Turn, seq: int | None, name: str | None, payload: str, created_at: datetime
    ) -> None:
        """Take up a command; or, where it has no name, that those up to it were merged into nothing."""
        if seq is None:
            return
        if name is None:
            turn.gone_seq = seq
            return
        attempt, epoch = turn.attempt, turn.epoch
        turn.take(ClaimedCommand(self.topic, turn.key, seq, name, payload, created_at, attempt, epoch))

    def end(self, connection: psycopg.Connection[Any], turns: list[Turn]) -> None:
        """Record what became of turns that were claimed in this transaction.

        Where one failed, the constraints are checked also if nothing is to be finished: those of what came
        before it, while a timeout can end that. None ends what a COMMIT runs.
        """
        for turn in turns:
            if turn.failed is not None:
                self._fail(connection, turn, turn.failed)
        done = [_done(turn) for turn in turns if turn.failed is None and not turn.untouched]
        if done or any(turn.failed is not None for turn in turns):
            session_of(connection).call(calls.turn.finish(self.schema, self.topic, done, self.applier_id))

    def end_alone(self, connection: psycopg.Connection[Any], turn: Turn) -> None:
        """Record what became of a turn that was claimed alone."""
        place = (self.schema, self.topic, turn.key, turn.epoch, turn.reached)
        if turn.failed is None:
            turn.outcome = session_of(connection).call(calls.lease.end_alone(*place))
            return
        error = encodable(turn.error, connection.info)
        turn.outcome = session_of(connection).call(
            calls.lease.fail_alone(*place, error, turn.asked, turn.took)
        )
        self._count_skipped(connection, turn, turn.failed)

    def fail_alone(
        self,
        connection: psycopg.Connection[Any],
        turn: Turn,
        error: HandlerBrokeTransaction,
    ) -> None:
        """Record, in a transaction of its own, that a turn failed and ended its transaction.

        Nothing is recorded where another worker was quicker to record something of the key.

        Raises:
            LockNotAvailable: another worker has claimed the key meanwhile, and takes long.
        """
        # What the turn did before was committed or rolled back with it: nobody can tell. The whole
        # turn counts as failed, so that nothing is lost.
        turn.done_seq = turn.applied_seq
        turn.failed = turn.orders[0]
        turn.error, turn.asked = describe(error), NOTHING
        with connection.transaction():
            session_of(connection).call(calls.session.bound())
            claimed = session_of(connection).call(
                calls.turn.lock_ticket(self.schema, self.topic, turn.key, turn.epoch - 1)
            )
            if claimed:
                self._fail(connection, turn, turn.failed)
                session_of(connection).call(
                    calls.turn.keep_alone(self.schema, self.topic, turn.key, turn.epoch)
                )
            else:
                turn.failed = None  # the other worker has recorded what became of it

    def _fail(self, connection: psycopg.Connection[Any], turn: Turn, failed: ClaimedCommand) -> None:
        error = encodable(turn.error, connection.info)
        turn.outcome = session_of(connection).call(
            calls.turn.fail(
                self.schema,
                self.topic,
                _done(turn),
                failed.seq,
                error,
                turn.asked,
                self.applier_id,
                turn.took,
            )
        )
        self._count_skipped(connection, turn, failed)

    def _count_skipped(self, connection: psycopg.Connection[Any], turn: Turn, failed: ClaimedCommand) -> None:
        if turn.outcome in {"skipped", "cancelled"}:
            turn.skipped = session_of(connection).call(
                calls.turn.count_skipped(self.schema, self.topic, turn.key, failed.seq, turn.epoch)
            )


def _done(turn: Turn) -> calls.turn.Done:
    return calls.turn.Done(turn.key, turn.epoch, turn.applied_seq + 1, turn.reached)
