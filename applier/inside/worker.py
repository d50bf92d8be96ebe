"""Worker: loops over its topics on one connection: applies whatever is ready, otherwise sleeps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from inturn.applier import calls, pacing
from inturn.applier.breaker import TargetDown
from inturn.applier.inside.alone import TurnLost, is_transient
from inturn.applier.inside.batch import Batch, Target
from inturn.applier.inside.hand import Hand
from inturn.applier.inside.passes import Passes
from inturn.applier.inside.session import SessionChanged, session_of
from inturn.applier.recovery import Recovery
from inturn.applier.stop import Bell, Stop
from inturn.schema.errors import InturnError, TargetRefused

log = logging.getLogger("inturn.applier")

#: A worker of more topics than this announces that it sleeps by one row for all.
ANNOUNCED_BY_NAME = 20
#: So many keys of a topic a worker takes alone after its start, and after a connection was lost.
CAREFUL_KEYS = 20
#: Whether it does after its start: tests of what it does later turn that off.
STARTS_CAREFULLY = True
#: The row of announce_sleep that stands for all topics.
EVERY_TOPIC = ""


class Visit(NamedTuple):
    """Whether a visit to a topic found a ready key, and whether it left because there was none any more."""

    found: bool
    emptied: bool


@dataclass(slots=True)
class Totals:
    """What a worker has done so far."""

    keys: int = 0
    commands: int = 0
    failures: int = 0
    skipped: int = 0


class WorkerEnded(InturnError):
    """A worker was ended by what is no error of its own: a SystemExit, a KeyboardInterrupt."""


def ended_by(error: BaseException) -> Exception:
    """Return what ended a worker, as an error that makes a non-zero exit."""
    if isinstance(error, Exception):
        return error
    ended = WorkerEnded(
        f"a worker was ended by {type(error).__name__}: {error}", hint="See the log for where"
    )
    ended.__cause__ = error
    return ended


class Worker:
    """One connection's worth of applying. `run` is what a thread runs."""

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        choose: Callable[[psycopg.Connection[Any]], Sequence[Target]],
        *,
        schema: str,
        max_keys: int,
        drain: bool,
        stop: Stop,
        bell: Bell,
        hand: Hand | None = None,
        recovery: Recovery | None = None,
    ) -> None:
        """Make a worker.

        Args:
            connect: gives a connection in autocommit with isolation level READ COMMITTED.
            choose: gives the topics to serve, in the order in which they are visited; asked
                first and again now and then, so that a new topic needs no restart, and that a
                schema that no longer fits ends the worker.
            schema: where inturn is installed.
            max_keys: the most keys that share a transaction.
            drain: stop when nothing is ready, rather than wait for more.
            stop, bell: shared with the other workers of the process.
            hand: what its targets hold their commands in.
            recovery: shared with the other workers of the process, too.
        """
        self._connect = connect
        self._choose = choose
        self._targets: dict[str, Target] = {}
        self._passes = Passes(schema)
        self._chosen_at = 0.0
        # What a key of a topic takes, by the quickest of the last batches.
        self._seconds_per_key: dict[str, float] = {}
        # When it announced, before it looked and found nothing, that it sleeps.
        self._announced_at = -pacing.ANNOUNCED_SECONDS
        # Until when it may sleep, by time.monotonic().
        self._due_at = pacing.NEVER
        self._schema = schema
        self._max_keys = max_keys
        self._drain = drain
        self._stop = stop
        self._bell = bell
        self._connection: psycopg.Connection[Any] | None = None
        self._failed_in_a_row = 0
        # Of each topic, how many keys are still to be taken alone; of one that is not here: as at first.
        # Whoever was lost with a key in hand that did it has left that among the first.
        self._careful: dict[str, int] = {}
        self._careful_at_first = CAREFUL_KEYS if STARTS_CAREFULLY else 0
        # Topics with ready keys that the last pass left, because their breaker is open.
        self._left_out: set[str] = set()
        # The turn in which the last connection broke, until that is recorded.
        self._lost: TurnLost | None = None
        self.hand = hand or Hand()
        self._recovery = recovery or Recovery()
        #: It was given up: a handler does not return. If it does after all, the worker ends.
        self.abandoned = False
        self.totals = Totals()
        #: Why the worker ended before it should have; None while it runs and after a good end.
        self.error: Exception | None = None

    def run(self) -> None:
        """Apply until stopped, or with drain until nothing is ready. Never raises: see `error`."""
        try:
            while not self._stop.requested and not self.abandoned and self._run_once():
                pass
        except BaseException as error:
            if not self._stop.expired and not self.abandoned:
                log.exception("worker failed")
                self.error = ended_by(error)

    def _run_once(self) -> bool:
        """Apply on one connection; return whether to go on with another."""
        try:
            with self._connect() as self._connection:
                if self._failed_in_a_row:
                    self._recovery.succeeded()
                self._record_lost(self._connection)
                self._serve(self._connection)
        except TurnLost as lost:
            if self.abandoned:
                return False
            self._lost = lost
            if isinstance(lost.error, psycopg.Error):
                return self._after_lost(lost.error)
            log.warning("the connection was closed by a handler", extra={"key": lost.alone.key})
            return not self._stop.requested
        except SessionChanged as error:
            log.info("a new connection: %s", error)
            return True
        except psycopg.Error as error:
            return self._after_lost(error)
        except InturnError as error:
            self.error = error
        return False

    def _after_lost(self, error: psycopg.Error) -> bool:
        """Wait after the database was lost, or refused; return whether to go on."""
        if self._stop.requested or self.abandoned:
            return False
        self._careful.clear()
        self._careful_at_first = CAREFUL_KEYS
        lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        self._failed_in_a_row += 1
        if self._drain and (not lost or self._failed_in_a_row > pacing.DRAIN_RECONNECTS):
            self.error = error
            return False
        self._wait_to_reconnect(error, lost=lost)
        return True

    def _record_lost(self, connection: psycopg.Connection[Any]) -> None:
        """Record the turn in which the last connection broke."""
        if self._lost is not None:
            self._lost.record(connection)
            self._lost = None
            self.totals.failures += 1

    @property
    def backend_pid(self) -> int | None:
        """Its session in the database, as far as the driver knows."""
        connection = self._connection
        return None if connection is None or connection.closed else connection.info.backend_pid

    def cancel(self) -> None:
        """Cancel the statement that the worker waits for, if any, and so its transaction."""
        connection = self._connection
        if connection is not None and not connection.closed:
            try:
                connection.cancel_safe(timeout=2.0)
            except psycopg.Error as error:
                log.warning("could not cancel: %s", error)

    def _serve(self, connection: psycopg.Connection[Any]) -> None:
        poll_seconds = pacing.FIRST_POLL_SECONDS
        self._chosen_at = -pacing.CHOOSE_SECONDS
        self._announced_at = -pacing.ANNOUNCED_SECONDS
        rung: frozenset[str] = frozenset()
        while not (self._stop.requested or self.abandoned):
            self._choose_when_due(connection)
            if self._apply_ready(connection, rung):
                rung, poll_seconds = frozenset(), pacing.FIRST_POLL_SECONDS
                continue
            if self._drain and not self._left_out:
                return
            if self._drain:
                self._wait_for_probe()
                continue
            if not self._announced:
                self._announce_sleep(connection)
                # Looks once more: a key that became ready before the announcement notified nobody.
                if self._apply_ready(connection):
                    rung, poll_seconds = frozenset(), pacing.FIRST_POLL_SECONDS
                    continue
            heard = self._bell.wait(min(poll_seconds, max(self._due_at - time.monotonic(), 0.0)))
            poll_seconds = pacing.next_poll(poll_seconds) if heard is None else pacing.FIRST_POLL_SECONDS
            rung = heard or frozenset()

    @property
    def _announced(self) -> bool:
        """Whether every append since its last look at all topics notifies it, for long enough to sleep."""
        return time.monotonic() - self._announced_at < pacing.ANNOUNCED_SECONDS

    def _choose_when_due(self, connection: psycopg.Connection[Any]) -> None:
        if time.monotonic() - self._chosen_at > pacing.CHOOSE_SECONDS:
            self._targets = {target.topic: target for target in self._choose(connection)}
            self._passes.serve(list(self._targets))
            self._chosen_at = time.monotonic()

    def _apply_ready(self, connection: psycopg.Connection[Any], rung: frozenset[str] = frozenset()) -> bool:
        """Apply what is ready; return whether there may be more.

        rung: the topics that the bell rang for. When nothing is left in them, a worker that has announced its
        sleep goes on with it: of any other topic it would have been notified.
        """
        if rung and self._announced:
            visits = [self._visit(connection, topic) for topic in rung if topic in self._targets]
            if all(visit.emptied for visit in visits):
                self._wait_for(self._seconds_to_next_ready(connection, list(rung)))
                return False
        found = self._passes.begin(connection)
        self._left_out.clear()
        self._due_at = pacing.NEVER
        self._wait_for(self._passes.due)
        visits = [self._visit(connection, topic) for topic in found]
        if any(visit.found for visit in visits):
            return True
        if found:
            # They are in other hands, or paused; others of their keys may be due soon.
            self._wait_for(self._seconds_to_next_ready(connection, found))
        return False

    def _wait_for_probe(self) -> None:
        """Wait until a topic whose commands fail, whatever the key, may be tried again.

        Raises:
            TargetDown: one was already since then, and failed.
        """
        for topic in self._left_out:
            if self._targets[topic].breaker.probed:
                raise TargetDown(
                    f"topic {topic!r} was not drained: its commands fail, whatever the key",
                    hint="Its keys stay as they are; see inturn keys --retrying",
                    topic=topic,
                )
        waits = [
            self._targets[topic].breaker.seconds_to_probe() or pacing.FIRST_POLL_SECONDS
            for topic in self._left_out
        ]
        self._stop.wait(min(waits))

    def _wait_for(self, seconds: float | None) -> None:
        """Sleep no longer than so many seconds from now; None: nothing is due."""
        if seconds is not None:
            self._due_at = min(self._due_at, time.monotonic() + seconds)

    def _visit(self, connection: psycopg.Connection[Any], topic: str) -> Visit:
        leave_at: float | None = None
        hand: datetime | str = self._passes.hand(topic)
        per_key = self._seconds_per_key.get(topic, pacing.NEVER)
        max_keys, alone = pacing.fitting_keys(per_key, self._max_keys), 0
        while not self._stop.requested and (leave_at is None or time.monotonic() < leave_at):
            started_at = time.monotonic()
            careful = self._careful.get(topic, self._careful_at_first)
            try:
                batch = self._make_batch(connection, topic, hand, 1 if alone else max_keys)
            except psycopg.DatabaseError as error:
                if error.sqlstate != TargetRefused.sqlstate:
                    raise
                # Its target is no SQL function any more: ask again what it is.
                self._chosen_at = -pacing.CHOOSE_SECONDS
                return Visit(found=True, emptied=False)
            if batch.keys == 0:
                return Visit(found=leave_at is not None, emptied=True)
            seconds = time.monotonic() - started_at
            if back := pacing.step_back_seconds(seconds):
                self._stop.wait(back)
            if leave_at is None:
                leave_at = started_at + pacing.visit_seconds(seconds)
                # There may be more than one worker's worth: wake another, which wakes another.
                self._bell.ring(topic)
            self._failed_in_a_row = 0
            if batch.redo:
                alone = 0 if batch.lost else batch.keys
                continue
            alone = max(alone - 1, 0)
            hand = batch.hand
            self._count(batch)
            if not session_of(connection).is_fit():
                raise SessionChanged("a command has left something in the session")
            if careful:
                continue
            per_key = min(per_key * 2, batch.target_seconds / batch.keys)
            self._seconds_per_key[topic] = per_key
            max_keys = min(pacing.fitting_keys(per_key, self._max_keys), max_keys * 2)
        return Visit(found=leave_at is not None, emptied=False)

    def _make_batch(
        self, connection: psycopg.Connection[Any], topic: str, hand: datetime | str, max_keys: int
    ) -> Batch:
        """Apply a batch, or one key alone while there is reason to; see Target."""
        target = self._targets[topic]
        if target.breaker.open:
            return self._probe(connection, target, hand)
        careful = self._careful.get(topic, self._careful_at_first)
        if careful > 0:
            try:
                batch = target.apply_alone(connection, hand)
            except psycopg.Error as error:
                if not is_transient(error):
                    raise
                return Batch(keys=1, redo=True, lost=True)
            if batch.keys:
                self._careful[topic] = careful - 1
            return batch
        try:
            batch = target.apply_batch(connection, hand, max_keys)
        except SessionChanged:
            raise
        except BaseException as error:
            refused = getattr(error, "sqlstate", None) == TargetRefused.sqlstate
            if connection.closed or self._stop.expired or refused:
                raise
            # Nobody can tell which of the keys it was: alone, it is found out and charged.
            log.warning("a batch failed, its keys are taken alone: %s", _line(error), extra={"topic": topic})
            self._careful[topic] = max_keys + CAREFUL_KEYS
            return Batch(keys=max_keys, redo=True, lost=True)
        if batch.lost:
            self._careful[topic] = batch.keys
        return batch

    def _probe(self, connection: psycopg.Connection[Any], target: Target, hand: datetime | str) -> Batch:
        """Try one key of a topic whose breaker is open, unless another worker does or it is not time yet."""
        if not target.breaker.begin_probe():
            self._left_out.add(target.topic)
            self._wait_for(target.breaker.seconds_to_probe() or pacing.LAST_POLL_SECONDS)
            return Batch()
        try:
            return target.apply_alone(connection, hand)
        finally:
            target.breaker.end_probe()

    def _count(self, batch: Batch) -> None:
        self.totals.keys += batch.keys
        self.totals.commands += batch.commands
        self.totals.failures += batch.failures
        self.totals.skipped += batch.skipped

    def _announce_sleep(self, connection: psycopg.Connection[Any]) -> None:
        topics = list(self._targets) if len(self._targets) <= ANNOUNCED_BY_NAME else [EVERY_TOPIC]
        session_of(connection).call(calls.appliers.announce_sleep(self._schema, topics))
        self._announced_at = time.monotonic()

    def _seconds_to_next_ready(
        self, connection: psycopg.Connection[Any], topics: Sequence[str]
    ) -> float | None:
        return session_of(connection).call(
            calls.appliers.next_ready(self._schema, list(topics), self._passes.looked_at)
        )

    def _wait_to_reconnect(self, error: psycopg.Error, *, lost: bool) -> None:
        seconds = pacing.reconnect_seconds(self._failed_in_a_row)
        what = "lost the database" if lost else "the database refused"
        log.warning("%s, connecting again in %.1f s: %s", what, seconds, _line(error))
        self._recovery.wait(seconds, self._stop)


def _line(error: BaseException) -> str:
    """Return what an error says, on one line that is not too long."""
    return " ".join(str(error).split())[:300] or type(error).__name__
