"""PythonTarget: applies the commands of a topic by handlers, in the transaction of the claim."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from inturn.applier.batch import Batch
from inturn.applier.command import Command
from inturn.applier.failure import describe
from inturn.applier.handlers import Applier
from inturn.applier.stop import Stop
from inturn.applier.verdict import NOTHING, Asked, asked
from inturn.schema.errors import Fenced, InturnError

log = logging.getLogger("inturn.applier")

#: Turns begin no further command once they have lasted so many seconds: an operator who pauses a key waits
#: for the command in hand, not for all that is pending.
LONGEST_TURN_SECONDS = 1.0
_NEVER = float("inf")


class HandlerBrokeTransaction(InturnError):
    """A handler left the transaction in a state in which nothing more can be done."""


class _CommandFailed(Exception):
    """A command's handler raised its cause."""

    def __init__(self, index: int, command: Command) -> None:
        super().__init__(index, command)
        self.index = index
        self.command = command


class _Redo(Exception):
    """One of several turns in the transaction failed."""


@dataclass(slots=True)
class _Turn:
    """One claimed key: what it has to apply, and how far that got."""

    key: str
    applied_seq: int
    epoch: int
    attempt: int
    ready_at: datetime
    commands: list[Command] = field(default_factory=list)
    done_seq: int = 0
    failed: Command | None = None
    error: str = ""
    asked: Asked = NOTHING
    outcome: str = "applied"
    skipped: int = 0

    @property
    def untouched(self) -> bool:
        """Whether none of its commands was begun: nothing is recorded, and the key stays ready as it was."""
        return bool(self.commands) and self.failed is None and self.done_seq == self.applied_seq


@dataclass(frozen=True, slots=True)
class PythonTarget:
    """A topic whose commands Python handlers apply."""

    topic: str
    applier: Applier
    stop: Stop
    schema: str
    applier_id: str

    def apply_batch(self, connection: psycopg.Connection[Any], since: datetime | str, max_keys: int) -> Batch:
        """Claim ready keys, apply their commands, end their turns, all in one transaction.

        Args:
            connection: in autocommit, with isolation level READ COMMITTED.
            since: the clock hand: claim keys that became ready then or later.
            max_keys: the most keys that share the transaction.

        Raises:
            psycopg.Error: the connection or the database failed; nothing was changed.
        """
        turns: list[_Turn] = []
        seconds = 0.0
        try:
            with connection.transaction():
                turns = self._claim(connection, since, max_keys)
                if not turns:
                    return Batch()
                started_at = time.monotonic()
                self._apply(connection, turns)
                seconds = time.monotonic() - started_at
                self._end(connection, turns)
        except _Redo:
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
        for turn in turns:
            if turn.failed is not None:
                self._log_failure(turn, turn.failed)
        return Batch(
            keys=len(turns),
            commands=sum(turn.done_seq - turn.applied_seq for turn in turns),
            failures=sum(turn.failed is not None and not turn.asked.skip for turn in turns),
            hand=turns[-1].ready_at,
            skipped=sum(turn.skipped for turn in turns),
            target_seconds=seconds,
        )

    def _claim(
        self, connection: psycopg.Connection[Any], since: datetime | str, max_keys: int
    ) -> list[_Turn]:
        rows = connection.execute(
            sql.SQL(
                "SELECT key, applied_seq, epoch, attempt, ready_at, seq, name, payload, created_at"
                " FROM {}.claim_commands(%s, %s, %s)"
            ).format(sql.Identifier(self.schema)),
            (self.topic, since, max_keys),
        ).fetchall()
        turns: dict[str, _Turn] = {}
        for key, applied_seq, epoch, attempt, ready_at, seq, name, payload, created_at in rows:
            turn = turns.get(key)
            if turn is None:
                turn = turns[key] = _Turn(key, applied_seq, epoch, attempt, ready_at, done_seq=applied_seq)
            if seq is not None:
                turn.commands.append(Command(self.topic, key, seq, name, payload, created_at, attempt, epoch))
        return list(turns.values())

    def _apply(self, connection: psycopg.Connection[Any], turns: list[_Turn]) -> None:
        leave_at = time.monotonic() + LONGEST_TURN_SECONDS
        fresh = [turn for turn in turns if turn.attempt == 1]
        if len(fresh) > 1:
            # No savepoints: when one of them fails, all are undone and taken again one by one.
            try:
                for turn in fresh:
                    self._run(connection, turn, turn.commands, leave_at)
            except _CommandFailed as failure:
                raise _Redo from failure
        for turn in turns if len(fresh) <= 1 else [turn for turn in turns if turn.attempt > 1]:
            self._apply_alone(connection, turn, leave_at)

    def _apply_alone(self, connection: psycopg.Connection[Any], turn: _Turn, leave_at: float) -> None:
        """Apply a turn under a savepoint; what came before a failing command runs again."""
        commands = turn.commands
        while commands:
            try:
                with connection.transaction():
                    self._run(connection, turn, commands, leave_at)
            except _CommandFailed as failure:
                turn.done_seq = turn.applied_seq
                turn.failed = failure.command
                error = failure.__cause__ or failure
                turn.error, turn.asked = describe(error), asked(error)
                # The second run has to reach the failed command, or its failure would not be recorded.
                commands, leave_at = commands[: failure.index], _NEVER
            except psycopg.errors.InvalidSavepointSpecification as error:
                raise self._broke(commands[-1]) from error
            else:
                if turn.failed is not None and turn.done_seq < turn.failed.seq - 1:
                    # A stop cut the second run short: the failed command is not next yet, and to
                    # record its failure would pass over those in between.
                    turn.failed = None
                return

    def _run(
        self, connection: psycopg.Connection[Any], turn: _Turn, commands: list[Command], leave_at: float
    ) -> None:
        for index, command in enumerate(commands):
            if self.stop.requested or time.monotonic() > leave_at:
                return
            try:
                self.applier.find(command)(connection, command)
                self._check_transaction(connection, command)
            except HandlerBrokeTransaction:
                raise
            except (Exception, SystemExit) as error:
                # A lost connection and an end of the grace time are no failures of the command.
                if connection.broken or connection.closed or self.stop.expired:
                    raise
                raise _CommandFailed(index, command) from error
            turn.done_seq = command.seq

    def _check_transaction(self, connection: psycopg.Connection[Any], command: Command) -> None:
        status = connection.info.transaction_status
        if status is TransactionStatus.INERROR:
            raise psycopg.errors.InFailedSqlTransaction(
                "the handler returned although a statement of its had failed: "
                "it must raise, or run the statement in a savepoint (connection.transaction())"
            )
        if status is not TransactionStatus.INTRANS:
            raise self._broke(command)

    def _broke(self, command: Command) -> HandlerBrokeTransaction:
        return HandlerBrokeTransaction(
            f"the handler of command {command.name!r}, or one before it, ended the transaction",
            hint="Its effects are not undone. Remove its COMMIT or ROLLBACK",
            topic=command.topic,
            key=command.key,
            seq=command.seq,
        )

    def _end(self, connection: psycopg.Connection[Any], turns: list[_Turn]) -> None:
        for turn in turns:
            if turn.failed is not None:
                self._fail(connection, turn, turn.failed)
        done = [turn for turn in turns if turn.failed is None and not turn.untouched]
        if done:
            connection.execute(
                sql.SQL(
                    "SELECT {}.finish(%s, %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s)"
                ).format(sql.Identifier(self.schema)),
                (
                    self.topic,
                    [turn.key for turn in done],
                    [turn.epoch for turn in done],
                    [turn.applied_seq + 1 for turn in done],
                    [turn.done_seq for turn in done],
                    self.applier_id,
                ),
            )

    def _fail(self, connection: psycopg.Connection[Any], turn: _Turn, failed: Command) -> None:
        error, detail = turn.error, turn.asked.detail
        if connection.info.parameter_status("server_encoding") != "UTF8":
            error = error.encode("ascii", "backslashreplace").decode("ascii")
        schema = sql.Identifier(self.schema)
        row = connection.execute(
            sql.SQL(
                "SELECT {}.fail(%s, %s, %s, %s, %s, concat_ws(E'\\n', %s::text, v.problem), %s,"
                " v.verdict, v.retry_after) FROM {}._read_verdict(%s, %s) v"
            ).format(schema, schema),
            (
                self.topic,
                turn.key,
                turn.epoch,
                turn.applied_seq + 1,
                failed.seq,
                error,
                self.applier_id,
                turn.asked.sqlstate,
                detail,
            ),
        ).fetchone()
        assert row is not None  # noqa: S101 - for mypy: the function returns one row
        turn.outcome = row[0]
        if turn.outcome in {"skipped", "cancelled"}:
            counted = connection.execute(
                sql.SQL(
                    "SELECT count(*) FROM {}.skip WHERE topic = %s AND key = %s AND seq >= %s AND epoch = %s"
                ).format(schema),
                (self.topic, turn.key, failed.seq, turn.epoch),
            ).fetchone()
            turn.skipped = counted[0] if counted else 0

    def _fail_alone(
        self,
        connection: psycopg.Connection[Any],
        turn: _Turn,
        error: HandlerBrokeTransaction,
    ) -> None:
        # What the turn did before was committed or rolled back with it: nobody can tell. The whole
        # turn counts as failed, so that nothing is lost.
        turn.done_seq = turn.applied_seq
        turn.failed = turn.commands[0]
        turn.error, turn.asked = describe(error), NOTHING
        with connection.transaction():
            claimed = connection.execute(
                sql.SQL(
                    "SELECT FROM {}.ticket WHERE topic = %s AND key = %s AND epoch = %s"
                    " FOR UPDATE SKIP LOCKED"
                ).format(sql.Identifier(self.schema)),
                (self.topic, turn.key, turn.epoch - 1),
            )
            # If it is gone, the next applier meets the same handler.
            if claimed.rowcount:
                self._fail(connection, turn, turn.failed)

    def _log_failure(self, turn: _Turn, failed: Command) -> None:
        what = {
            "skipped": "command failed for the last time and was skipped",
            "cancelled": "command failed for the last time and was skipped with all that was pending",
        }.get(turn.outcome, "command failed")
        level = logging.WARNING
        # What its handler asked for is no news to who wrote it; that a key stands still is.
        if turn.asked.skip:
            what, level = "command skipped by its handler", logging.INFO
        elif turn.outcome == "held" and turn.asked.hold:
            what = "key held by its handler"
        elif turn.outcome == "retrying" and turn.asked.sqlstate:
            what, level = "command put off by its handler", logging.INFO
        log.log(
            level,
            "%s: %s",
            what,
            turn.error.partition("\n")[0][:300],
            extra={
                "topic": self.topic,
                "key": turn.key,
                "seq": failed.seq,
                "command": failed.name,
                "attempt": failed.attempt,
            },
        )
