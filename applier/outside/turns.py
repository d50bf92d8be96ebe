"""OutsideTurns: one key in hand by lease, from its first command to the end of the lease."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

import psycopg

from inturn.applier.calls.lease import LeaseOutcome
from inturn.applier.command import ClaimedCommand
from inturn.applier.failure import describe, log_failure
from inturn.applier.inside.alone import is_cut, is_transient
from inturn.applier.inside.batch import Handled
from inturn.applier.inside.python.judge import NO_HANDLER_WAIT
from inturn.applier.inside.watchdog import GIVE_UP_SECONDS
from inturn.applier.metrics.tallies import COMMANDS, LOST_LEASES, TURNS, Tallies
from inturn.applier.outside.effect import Effect, Failed, LeaseOver
from inturn.applier.outside.lanes import Lane, Work, place
from inturn.applier.outside.leases import Lease, Leases, LeaseStep
from inturn.applier.outside.link import SharedConnection
from inturn.applier.outside.recorder import Recorder
from inturn.applier.process.failure_log import FAILURES
from inturn.applier.process.totals import Totals
from inturn.applier.stop import LoopBell, Stop
from inturn.applier.verdict import Outage, Requested
from inturn.schema.advice import one_line
from inturn.schema.errors import Fenced, SchemaMismatch

log = logging.getLogger("inturn.applier")


class Cut(Exception):
    """The effect was cancelled: the lease is gone, or the grace time over. What became of it is unknown."""


class _Overdue(Exception):
    """The effect took longer than its topic's timeout. ended: a cancel has ended it."""

    def __init__(self, *, ended: bool) -> None:
        super().__init__()
        self.ended = ended


class OutsideTurns:
    """Takes turns, any number at a time. `take` is what a task runs."""

    def __init__(
        self,
        leases: Leases,
        link: SharedConnection,
        recorder: Recorder,
        *,
        stop: Stop,
        bell: LoopBell,
        totals: Totals,
        tallies: Tallies,
        give_up: Callable[[ClaimedCommand], None],
    ) -> None:
        """Make one.

        Args:
            bell: nudged when a turn has ended.
            totals, tallies: what was done is added to them.
            give_up: told of a command whose handler is left behind.
        """
        self._leases = leases
        self._link = link
        self._recorder = recorder
        self._stop = stop
        self._bell = bell
        self._totals = totals
        self._tallies = tallies
        self._give_up = give_up

    async def take(self, lane: Lane, work: Work) -> None:
        """Apply a key's commands, until none is left, one failed, or a stop; then let the key go."""
        try:
            await self._apply(lane, work)
        except psycopg.Error as error:
            await self._not_recorded(work.lease, error)
        except SchemaMismatch as error:
            await self._give_back(work.lease, error)
        finally:
            lane.in_flight.discard(work)
            self._totals.keys += 1
            self._tallies.count(TURNS, lane.topic)
            if work.fenced:
                self._tallies.count(LOST_LEASES, lane.topic)
            self._bell.nudge()

    async def _apply(self, lane: Lane, work: Work) -> None:
        """Apply a key's commands one after the other, each only once the one before is recorded."""
        orders = work.lease.orders
        for order in orders:
            if self._must_stop(lane, work):
                break
            if not work.lease.alive() and await self._record(work) != "kept":
                return
            effect = lane.effect  # when the topic's target is changed meanwhile, the lane has another
            try:
                failed = await self._do(lane, work, order, effect)
            except LeaseOver:
                break
            except Cut:
                # Repeated or not, it is next: another applier may have it at once.
                if _goes_on(effect, order, work):
                    return
                break
            if failed is not None:
                await self._fail(lane, work, order, failed)
                return
            lane.breaker.succeeded()
            last = order is orders[-1] or self._must_stop(lane, work)
            kept = await self._record(work, order.seq, release=last)
            if kept != "fenced":
                self._totals.commands += 1
                self._tallies.count(COMMANDS, lane.topic, "applied")
            if kept != "kept":
                return
        await self._record(work, release=True)

    async def _not_recorded(self, lease: Lease, error: psycopg.Error) -> None:
        """Say that the database refused something of a key, so that its lease need not run out first."""
        reason = one_line(str(error))
        FAILURES.log(logging.WARNING, "not recorded", reason, place(lease))
        if error.sqlstate is None:
            return  # the database is gone
        try:
            lose = functools.partial(
                self._leases.lose,
                lease=lease,
                error=f"what became of it could not be recorded: {reason}",
                is_clear=None if is_transient(error) or is_cut(error) else True,
            )
            outcome = await self._link.run(lose, patient=True)
        except psycopg.Error:
            return  # the lease runs out
        FAILURES.log(logging.WARNING, outcome, reason, place(lease))

    async def _give_back(self, lease: Lease, error: SchemaMismatch) -> None:
        """Let a key go that an upgrade found in hand: it is not charged, and its command is repeated."""
        log.warning("not recorded: %s", error, extra=place(lease))
        lose = functools.partial(self._leases.lose, lease=lease, error=None)
        with suppress(psycopg.Error, SchemaMismatch):  # the lease runs out
            log.warning("%s", await self._link.run(lose, patient=True), extra=place(lease))

    async def _record(self, work: Work, seq: int | None = None, *, release: bool = False) -> LeaseOutcome:
        kept = await self._recorder.record(LeaseStep(work.lease, seq, release))
        if kept == "fenced":
            _lose(work)
        return kept

    def _must_stop(self, lane: Lane, work: Work) -> bool:
        return self._stop.requested or (lane.breaker.open and not work.probe)

    async def _do(self, lane: Lane, work: Work, order: ClaimedCommand, effect: Effect) -> Failed | None:
        work.at_work = True
        began_at, started_at = time.time(), time.monotonic()
        try:
            timeout = lane.timeout  # as the effect: the setting may be changed meanwhile
            stops = effect.stops_when_cut(order)
            apply = effect.apply(order, work.lease)
            return await (apply if timeout is None else _apply_within(apply, timeout, stops=stops))
        except LeaseOver:
            raise
        except _Overdue as late:
            ended = late.ended and stops
            if not ended:
                self._give_up(order)
            text = f"the command took longer than the topic's timeout of {timeout:g} s"
            return Failed(text, outage=ended)
        except Exception as error:  # noqa: BLE001 - nobody reads what a turn's task ends with
            return Failed(describe(error))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - for mypy: this is one
            task.uncancel()
            if not work.was_cut:
                return Failed("CancelledError: the handler cancelled its own task")
            raise Cut from None
        finally:
            work.at_work = False
            self._tallies.count_handled(lane.topic, Handled(order, began_at, time.monotonic() - started_at))

    async def _fail(self, lane: Lane, work: Work, order: ClaimedCommand, failed: Failed) -> None:
        if failed.outage:
            if not lane.breaker.failed(order.key, failed.error, probe=work.probe):
                await self._record(work, release=True)
                return
        elif failed.unhandled:
            if await self._link.run(
                functools.partial(self._leases.has_others, topic=lane.topic), patient=True
            ):
                # A deployment is under way: another process may know the command.
                failed = replace(failed, asked=Requested(Outage.sqlstate, NO_HANDLER_WAIT))
        elif not failed.asked.outage:
            lane.breaker.succeeded()
        try:
            outcome, skipped = await self._link.run(
                functools.partial(self._leases.fail, order=order, error=failed.error, asked=failed.asked),
                patient=True,
            )
        except psycopg.DatabaseError as error:
            if error.sqlstate != Fenced.sqlstate:
                raise
            _lose(work)
            return
        if not failed.asked.skip:
            self._totals.failures += 1
            self._tallies.count(COMMANDS, lane.topic, "failed")
        self._totals.skipped += skipped
        self._tallies.count(COMMANDS, lane.topic, "skipped", skipped)
        log_failure(order, failed.error, failed.asked, outcome)


async def _apply_within(
    apply: Coroutine[Any, Any, Failed | None], seconds: float, *, stops: bool
) -> Failed | None:
    """Await an effect in a task of its own for so long; then cancel it, and leave it behind if it goes on.

    What it says within GIVE_UP_SECONDS of that, or of a cut, is what became of it: one that has succeeded
    late would have its effect twice. One that heeds no cut is left behind too, once its time is over.

    stops: whether a cancel ends its work. Otherwise it is waited for: a thread may end by itself.

    Raises:
        _Overdue: it took longer, and does not say what became of it.
        CancelledError: this was cut off, and so was the effect; or that has cancelled its own task.
    """
    task = asyncio.create_task(apply)
    ends_at = time.monotonic() + seconds
    try:
        await asyncio.wait([task], timeout=seconds)
        is_late = not task.done()
        if is_late:
            if stops:
                task.cancel()
            await asyncio.wait([task], timeout=GIVE_UP_SECONDS)
    except asyncio.CancelledError:
        give_up_at = max(ends_at, time.monotonic()) + GIVE_UP_SECONDS
        while not task.done() and (left := give_up_at - time.monotonic()) > 0:
            task.cancel()
            with suppress(asyncio.CancelledError):  # whoever cuts does so again and again
                await asyncio.wait([task], timeout=left)
        if task.cancelled():
            raise
        current = asyncio.current_task()
        assert current is not None  # noqa: S101 - for mypy: this is one
        while current.cancelling():
            current.uncancel()
        is_late = not task.done()
    if is_late and (task.cancelled() or not task.done()):
        task.cancel()
        raise _Overdue(ended=task.done())
    return task.result()


def _goes_on(effect: Effect, order: ClaimedCommand, work: Work) -> bool:
    """Whether a command that was cut off is still at work: then its lease has to run out, if it has not."""
    if effect.stops_when_cut(order):
        return False
    if not work.lease.alive():
        _lose(work)
    return True


def _lose(work: Work) -> None:
    """Note that a lease is gone, and say so, once."""
    if not work.fenced:
        work.fenced = True
        log.warning("fenced off: the lease is gone, work on the key stops", extra=place(work.lease))
