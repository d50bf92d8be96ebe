"""Visits: a worker's visits to topics, batch after batch; which keys are taken alone."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from psycopg.pq import TransactionStatus

from inturn.applier import pacing
from inturn.applier.breaker import Breaker
from inturn.applier.failure import on_one_line
from inturn.applier.inside.alone import is_cut, is_transient, raise_lost
from inturn.applier.inside.batch import Batch, Target
from inturn.applier.inside.session import SessionChanged, session_of
from inturn.applier.inside.sleep import Sleep
from inturn.applier.metrics.tallies import INSIDE, Tallies
from inturn.applier.process.failure_log import FAILURES
from inturn.applier.process.totals import Totals
from inturn.applier.stop import Bell, Stop
from inturn.schema.errors import OwnerChanged, SchemaMismatch, TargetRefused
from inturn.schema.version import check_after

#: How many keys of a topic a worker takes alone after its start, where an applier before it may have died of
#: one of them, and after a connection was lost with several keys in hand.
CAREFUL_KEYS = 20
#: For how long whoever starts is as careful as a worker that is.
PASSED_ON_SECONDS = 600.0
#: How often the pause is doubled after which a claim that was lost against another transaction runs again.
MOST_DOUBLINGS = 6
#: Whether it does so after its start: tests of later behaviour turn that off.
STARTS_CAREFULLY = True


def careful_at_first(_topic: str = "") -> int:
    """Return how many keys of a topic a worker takes alone after its start, where there is reason to."""
    return CAREFUL_KEYS if STARTS_CAREFULLY else 0


class Visit(NamedTuple):
    """Whether a visit to a topic found a ready key, and whether it left because there was none any more."""

    found: bool
    emptied: bool


def _was_undone(batch: Batch, max_keys: int) -> bool:
    """Return whether a batch of several keys was undone, so that fewer of them are claimed again.

    That is done in the same visit, however long it took: where everything takes long, the next one would
    begin with the same batch, for ever. With half as many where one was lost: if that was put off for a
    moment, it may be back by the next claim, but as the last one.
    """
    return batch.keys > 1 if batch.redo else batch.lost and max_keys > 1


class Visits:
    """The visits of one worker. `visit` applies what is ready in a topic, for a while."""

    def __init__(
        self,
        *,
        max_keys: int,
        stop: Stop,
        bell: Bell,
        sleep: Sleep,
        totals: Totals,
        tallies: Tallies,
        found: Callable[[], None],
        careful: Callable[[str], float],
    ) -> None:
        """Make them.

        Args:
            max_keys: the most keys that share a transaction.
            totals, tallies: what was done is added to them.
            found: called when keys were claimed.
            careful: says how many of the first keys of a topic are taken alone; inf: as long as it says so.
        """
        # What a key of a topic takes, by the quickest of the last batches.
        self._seconds_per_key: dict[str, float] = {}
        self.max_keys = max_keys
        self._stop, self._bell, self._sleep = stop, bell, sleep
        self._totals, self._tallies = totals, tallies
        self._found = found
        # Of each topic, how many keys are still to be taken alone; of one that is not here: as at first.
        # A key that cost an applier its connection is among the first ready ones.
        self._careful: dict[str, float] = {}
        self._careful_at_first = careful
        self._careful_since_lost = 0
        self._lost_in_a_row = 0  # claims of a key alone, against another transaction
        self._careful_from = time.monotonic()  # since when it has been
        self._probed: Breaker | None = None  # that of the topic that is probed just now
        #: Topics with ready keys that the last pass left, because their breaker is open.
        self.left_out: set[str] = set()

    def serve(self, topics: Iterable[str]) -> None:
        """Learn which topics there are to visit."""
        self._tallies.begin(topics, INSIDE)

    def is_careful(self, topic: str) -> bool:
        """Return whether the next key of a topic is taken alone."""
        return self._careful_keys(topic) > 0

    def _careful_keys(self, topic: str) -> float:
        first = max(self._careful_at_first(topic), self._careful_since_lost)
        return first if first == math.inf else self._careful.get(topic, first)

    def careful_among(self, topics: Iterable[str]) -> list[str]:
        """Return the topics whose next key is taken alone; none, once it has been careful for long.

        Whoever starts meanwhile is as careful: where few keys come, that would never end.
        """
        is_long = time.monotonic() - self._careful_from > PASSED_ON_SECONDS
        return [] if is_long else [topic for topic in topics if self.is_careful(topic)]

    def width(self, topic: str) -> int:
        """Return how many keys of a topic the next batch takes."""
        return pacing.fitting_keys(self._seconds_per_key.get(topic, pacing.NEVER), self.max_keys)

    def be_careful(self) -> None:
        """Take the next keys of every topic alone: one of them may have cost the connection."""
        self._careful.clear()
        self._careful_since_lost = CAREFUL_KEYS
        self._careful_from = time.monotonic()

    def visit(self, connection: psycopg.Connection[Any], target: Target, hand: datetime | str) -> Visit:
        """Apply batches of a topic, from the keys on that became ready at `hand`.

        Raises:
            psycopg.Error: the database failed, or refused; TargetRefused, OwnerChanged: it refuses the topic.
            SessionChanged, TurnLost, SchemaMismatch: so has the connection, or the worker.
        """
        topic = target.topic
        leave_at: float | None = None
        max_keys, alone, owes = self.width(topic), 0, False
        while not self._stop.requested and (owes or leave_at is None or time.monotonic() < leave_at):
            started_at, careful = time.monotonic(), self.is_careful(topic)
            batch = self._make_batch(connection, target, hand, 1 if alone else max_keys)
            if batch.keys == 0:
                return Visit(found=leave_at is not None, emptied=True)
            seconds = time.monotonic() - started_at
            if back := pacing.step_back_seconds(seconds):
                self._stop.wait(back)
            if leave_at is None:
                leave_at = started_at + pacing.visit_seconds(seconds)
                # There may be more than one worker's worth: wake another, which wakes another.
                self._bell.looked(found=True)
                self._bell.ring(topic)
            self._found()
            self._tallies.count_batch(topic, batch)
            if owes := _was_undone(batch, max_keys):
                leave_at = max(leave_at, time.monotonic() + pacing.SHORTEST_VISIT_SECONDS)
            if batch.redo:
                alone = 0 if batch.lost else batch.keys
                continue
            alone = max(alone - 1, batch.left)
            hand = batch.hand
            self._totals.count(batch)
            self._check_session(connection, topic, batch)
            if batch.lost:
                max_keys = max(max_keys // 2, 1)
            elif batch.target_seconds and not careful:  # what was put off does not say how long a key takes
                self._learn(topic, batch, seconds)
                max_keys = min(self.width(topic), max_keys * 2)
        return Visit(found=leave_at is not None, emptied=False)

    def _learn(self, topic: str, batch: Batch, seconds: float) -> None:
        """Learn from a batch that took so many seconds how long a key of its topic takes."""
        known = self._seconds_per_key.get(topic, pacing.NEVER)
        per_key = pacing.seconds_per_key(known, batch.seconds_per_key, seconds, self.max_keys)
        self._seconds_per_key[topic] = per_key

    def _check_session(self, connection: psycopg.Connection[Any], topic: str, batch: Batch) -> None:
        """Make sure that nothing was left in the session, and that the next batch does something.

        Raises:
            SessionChanged: something was. If nothing was recorded either, so it would be again: the next keys
                are taken alone, where the command that did it is charged.
        """
        if batch.is_untouched and not (batch.lost or self._stop.requested or self.is_careful(topic)):
            self._careful[topic] = 1  # alone, a key is begun however late it is
        if session_of(connection).is_fit():
            return
        if not (batch.commands or batch.failures or batch.skipped):
            self._careful[topic] = max(self._careful.get(topic, 0), CAREFUL_KEYS)
        raise SessionChanged("a command has left something in the session")

    def _make_batch(
        self, connection: psycopg.Connection[Any], target: Target, hand: datetime | str, max_keys: int
    ) -> Batch:
        """Apply a batch, or one key alone while there is reason to; see Target."""
        topic = target.topic
        if target.breaker.open:
            return self._probe(connection, target, hand)
        if self.is_careful(topic):
            return self._make_alone(connection, target, hand)
        try:
            batch = target.apply_batch(connection, hand, max_keys)
        except (SessionChanged, SchemaMismatch, TargetRefused, OwnerChanged):
            raise
        except BaseException as error:
            if self._stop.expired:
                raise
            if connection.closed:
                raise_lost(error)
            check_after(error, connection, target.schema)
            # Nobody can tell which of the keys it was: alone, it is found out and charged.
            what = "a batch failed, its keys are taken alone"
            FAILURES.log(logging.WARNING, what, on_one_line(error), {"topic": topic})
            self._careful[topic] = max_keys + CAREFUL_KEYS
            if connection.info.transaction_status is not TransactionStatus.IDLE:
                # It could not be ended: whatever comes later would be a part of it.
                raise SessionChanged("a command has left the transaction open") from error
            return Batch(keys=max_keys, redo=True, lost=True)
        if batch.lost:
            alone = self._make_alone(connection, target, batch.hand)
            if not alone.keys:  # somebody else has taken it meanwhile
                return Batch(keys=1, redo=True, lost=True)
            # The others go on together; the hand stays where it was, before them.
            return dataclasses.replace(alone, hand=hand, lost=True)
        return batch

    def _make_alone(self, connection: psycopg.Connection[Any], target: Target, hand: datetime | str) -> Batch:
        """Apply the next key alone."""
        try:
            batch = target.apply_alone(connection, hand)
        except psycopg.Error as error:
            if self._stop.expired or not (is_transient(error) or is_cut(error)):
                raise
            self._stop.wait(pacing.again_seconds(min(self._lost_in_a_row, MOST_DOUBLINGS)))
            self._lost_in_a_row += 1
            return Batch(keys=1, redo=True, lost=True)
        self._lost_in_a_row = 0
        careful = self._careful_keys(target.topic)
        if batch.keys and not batch.redo and 0 < careful < math.inf:
            self._careful[target.topic] = careful - 1
        return batch

    def _probe(self, connection: psycopg.Connection[Any], target: Target, hand: datetime | str) -> Batch:
        """Try one key of a topic whose breaker is open, unless another worker does or it is not time yet."""
        if not target.breaker.begin_probe():
            self.left_out.add(target.topic)
            self._sleep.end_within(target.breaker.seconds_to_probe() or pacing.LAST_POLL_SECONDS)
            return Batch()
        self._probed = target.breaker
        try:
            return self._make_alone(connection, target, hand)
        finally:
            self._probed = None
            target.breaker.end_probe()

    def end_probe(self, thread: int) -> None:
        """End the probe that is made just now, if any, by a thread that was given up."""
        if (breaker := self._probed) is not None:
            breaker.end_probe(thread)
