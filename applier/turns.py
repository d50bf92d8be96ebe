"""PythonTarget: applies the commands of a topic by handlers, in the transaction of the claim."""

from __future__ import annotations

import logging
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
from inturn.schema.errors import Fenced, InturnError

log = logging.getLogger("inturn.applier")


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
        try:
            with connection.transaction():
                turns = self._claim(connection, since, max_keys)
                if not turns:
                    return Batch()
                self._apply(connection, turns)
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
                self._log_failure(turn)
        return Batch(
            keys=len(turns),
            commands=sum(turn.done_seq - turn.applied_seq for turn in turns),
            failures=sum(turn.failed is not None for turn in turns),
            hand=turns[-1].ready_at,
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
        fresh = [turn for turn in turns if turn.attempt == 1]
        if len(fresh) > 1:
            # No savepoints: when one of them fails, all are undone and taken again one by one.
            try:
                for turn in fresh:
                    self._run(connection, turn, turn.commands)
            except _CommandFailed as failure:
                raise _Redo from failure
        for turn in turns if len(fresh) <= 1 else [turn for turn in turns if turn.attempt > 1]:
            self._apply_alone(connection, turn)

    def _apply_alone(self, connection: psycopg.Connection[Any], turn: _Turn) -> None:
        """Apply a turn under a savepoint; what came before a failing command runs again."""
        commands = turn.commands
        while commands:
            try:
                with connection.transaction():
                    self._run(connection, turn, commands)
            except _CommandFailed as failure:
                turn.done_seq = turn.applied_seq
                turn.failed = failure.command
                turn.error = describe(failure.__cause__ or failure)
                commands = commands[: failure.index]
            except psycopg.errors.InvalidSavepointSpecification as error:
                raise self._broke(commands[-1]) from error
            else:
                if turn.failed is not None and turn.done_seq < turn.failed.seq - 1:
                    # A stop cut the second run short: the failed command is not next yet, and to
                    # record its failure would pass over those in between.
                    turn.failed = None
                return

    def _run(self, connection: psycopg.Connection[Any], turn: _Turn, commands: list[Command]) -> None:
        for index, command in enumerate(commands):
            if self.stop.requested:
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
                self._fail(connection, turn)
        done = [turn for turn in turns if turn.failed is None]
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

    def _fail(self, connection: psycopg.Connection[Any], turn: _Turn) -> None:
        assert turn.failed is not None  # noqa: S101 - for mypy: the callers ask
        error = turn.error
        if connection.info.parameter_status("server_encoding") != "UTF8":
            error = error.encode("ascii", "backslashreplace").decode("ascii")
        connection.execute(
            sql.SQL("SELECT {}.fail(%s, %s, %s, %s, %s, %s, %s)").format(sql.Identifier(self.schema)),
            (
                self.topic,
                turn.key,
                turn.epoch,
                turn.applied_seq + 1,
                turn.failed.seq,
                error,
                self.applier_id,
            ),
        )

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
        turn.error = describe(error)
        with connection.transaction():
            claimed = connection.execute(
                sql.SQL(
                    "SELECT FROM {}.key_cursor WHERE topic = %s AND key = %s AND epoch = %s"
                    " FOR UPDATE SKIP LOCKED"
                ).format(sql.Identifier(self.schema)),
                (self.topic, turn.key, turn.epoch - 1),
            )
            # If it is gone, the next applier meets the same handler.
            if claimed.rowcount:
                self._fail(connection, turn)

    def _log_failure(self, turn: _Turn) -> None:
        assert turn.failed is not None  # noqa: S101 - for mypy: the caller asks
        log.warning(
            "command failed: %s",
            turn.error.partition("\n")[0][:300],
            extra={
                "topic": self.topic,
                "key": turn.key,
                "seq": turn.failed.seq,
                "command": turn.failed.name,
                "attempt": turn.failed.attempt,
            },
        )
