"""Outside the database: what goes wrong around a command, seen without a database."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from datetime import UTC, datetime
from typing import Any
from unittest.mock import AsyncMock, Mock, call

import psycopg
import pytest
from support.b_server import TOPIC

from inturn.applier import Applier, Command, pacing
from inturn.applier.breaker import Breaker
from inturn.applier.command import ClaimedCommand
from inturn.applier.http.effect import HttpEffect
from inturn.applier.metrics.tallies import Tallies
from inturn.applier.outside.effect import Effect, Failed, HandlerEffect, Timeouts
from inturn.applier.outside.keeper import keep_leases
from inturn.applier.outside.lanes import Lane, OutsideTarget, Work
from inturn.applier.outside.leases import Lease, LeaseStep
from inturn.applier.outside.link import AGAIN_TIMES, SharedConnection
from inturn.applier.outside.loop import WorkLoop
from inturn.applier.outside.recorder import Recorder
from inturn.applier.outside.turns import OutsideTurns
from inturn.applier.outside.worker import OutsideWorker
from inturn.applier.process.recovery import Recovery
from inturn.applier.process.totals import Totals
from inturn.applier.stop import LoopBell, Stop


def never_called(_: Command) -> None:
    raise AssertionError


class Silent(Recorder):
    """Answers nobody: the database does not either."""

    def __init__(self) -> None: ...

    async def record(self, step: LeaseStep) -> Any:
        await asyncio.Event().wait()


def test_a_handler_whose_lease_is_over_is_not_cancelled_again_while_it_cleans_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inturn.applier.outside.keeper.KEEP_SECONDS", 0.0)
    monkeypatch.setattr("inturn.applier.outside.lanes.CLEAN_UP_SECONDS", 3600.0)
    ends: list[str] = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(100):  # many looks of the keeper
                await asyncio.sleep(0)
            ends.append("rolled back")

    async def run() -> None:
        over = Lease(TOPIC, "a", 1, length=1.0, ends_at=time.monotonic() - 1, epoch_at_zero=0.0)
        work = Work(over, probe=False, task=asyncio.create_task(hang()), at_work=True)
        keeper = asyncio.create_task(keep_leases(lambda: [work], Silent()))
        assert work.task is not None
        await asyncio.wait([work.task])
        keeper.cancel()

    asyncio.run(run())
    assert ends == ["rolled back"]


def test_what_passes_over_a_cancel_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inturn.applier.outside.lanes.CLEAN_UP_SECONDS", 0.0)

    async def run() -> bool:
        async def pass_over() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await asyncio.Event().wait()

        task = asyncio.create_task(pass_over())
        work = Work(Lease(TOPIC, "a", 1, 1.0, 0.0, 0.0), probe=False, task=task, at_work=True)
        for _ in range(2):
            await asyncio.sleep(0)
            work.cut()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(run())


@pytest.mark.parametrize("kind", ["handler", "http"])
def test_where_no_thread_can_be_started_a_command_fails_as_in_an_outage(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    applier = Applier()
    applier.handler(TOPIC, outside=True)(never_called)
    effect: Effect = HandlerEffect(applier)
    if kind == "http":
        effect = HttpEffect("http://b.invalid/", None, Timeouts())
    order = ClaimedCommand(TOPIC, "a", 1, "x", "{}", datetime.now(UTC), 1, 1)
    lease = Lease(TOPIC, "a", 1, 30.0, time.monotonic() + 30, 0.0)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with asyncio.Runner(loop_factory=WorkLoop) as runner:
        failed = runner.run(effect.apply(order, lease))
    assert failed is not None
    assert failed.outage
    assert "thread" in failed.error


@pytest.mark.parametrize(
    ("error", "is_said"), [(RuntimeError("a fault of ours"), True), (psycopg.OperationalError("lost"), False)]
)
def test_a_fault_that_comes_up_at_a_stop_is_said_as_at_any_other_time(
    error: Exception, is_said: bool
) -> None:
    stop = Stop()

    def choose(_connection: Any) -> list[OutsideTarget]:
        stop.request()
        raise error

    worker = OutsideWorker(
        Mock, Mock(), choose, applier_id="w", schema="inturn", drain=False, stop=stop, bell=LoopBell(),
        others_run=lambda: False,
    )  # fmt: skip
    worker.run()
    assert worker.error is (error if is_said else None)


class Hanging(Effect):
    """Does not end; `stops`: whether it does when it is cancelled."""

    def __init__(self, *, stops: bool) -> None:
        self.stops = stops
        self.begun = asyncio.Event()

    def stops_when_cut(self, order: ClaimedCommand) -> bool:
        return self.stops

    async def apply(self, order: ClaimedCommand, lease: Lease) -> None:
        self.begun.set()
        await asyncio.Event().wait()

    async def tidy(self) -> None: ...

    async def close(self) -> None: ...


@pytest.mark.parametrize("stops", [True, False])
def test_a_key_whose_thread_goes_on_is_not_let_go_though_its_topic_has_another_target_by_now(
    stops: bool,
) -> None:
    async def run() -> list[LeaseStep]:
        order = ClaimedCommand(TOPIC, "a", 1, "x", "{}", datetime.now(UTC), 1, 1)
        lease = Lease(TOPIC, "a", 1, 3600.0, time.monotonic() + 3600, 0.0, [order])
        effect, recorder = Hanging(stops=stops), Mock()
        recorder.record = AsyncMock(return_value="released")
        turns = OutsideTurns(
            Mock(), Mock(), recorder, stop=Stop(), bell=LoopBell(), totals=Totals(), tallies=Tallies(),
            give_up=Mock(),
        )  # fmt: skip
        lane, work = Lane(TOPIC, 1, None, effect, Breaker(TOPIC)), Work(lease, probe=False)
        lane.in_flight.add(work)
        work.task = asyncio.create_task(turns.take(lane, work))
        await effect.begun.wait()
        lane.effect = Hanging(stops=not stops)
        work.cut()
        await work.task
        return [call.args[0] for call in recorder.record.await_args_list]

    assert [step.release for step in asyncio.run(run())] == ([True] if stops else [])


def test_a_command_that_takes_too_long_fails_though_its_topic_has_no_timeout_by_now() -> None:
    async def run() -> Any:
        order = ClaimedCommand(TOPIC, "a", 1, "x", "{}", datetime.now(UTC), 1, 1)
        lease = Lease(TOPIC, "a", 1, 3600.0, time.monotonic() + 3600, 0.0, [order])
        effect, link = Hanging(stops=True), Mock()
        link.run = AsyncMock(return_value=("retrying", 0))
        turns = OutsideTurns(
            Mock(), link, Mock(), stop=Stop(), bell=LoopBell(), totals=Totals(), tallies=Tallies(),
            give_up=Mock(),
        )  # fmt: skip
        lane, work = Lane(TOPIC, 1, None, effect, Breaker(TOPIC), timeout=0.01), Work(lease, probe=False)
        lane.in_flight.add(work)
        work.task = asyncio.create_task(turns.take(lane, work))
        await effect.begun.wait()
        lane.timeout = None
        await work.task
        return link.run.await_args

    failed = asyncio.run(run()).args[0].keywords
    assert "took longer than the topic's timeout of 0.01 s" in failed["error"]


class Late(Hanging):
    """Ends when its topic's timeout is over, or when it is cut off: it says what became of it."""

    said: Failed | None = None

    async def apply(self, order: ClaimedCommand, lease: Lease) -> Any:
        self.begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait() if self.stops else await asyncio.sleep(0.1)
        return self.said


@pytest.mark.parametrize("said", [None, Failed("its own error")])
@pytest.mark.parametrize(
    ("stops", "cut", "timeout"), [(True, False, 0.01), (False, False, 0.01), (True, True, 3600)]
)
def test_a_command_that_ends_late_has_said_what_became_of_it(
    said: Failed | None, *, stops: bool, cut: bool, timeout: float
) -> None:
    """One that has succeeded would have its effect twice; its thread is not abandoned, for it has ended."""

    async def run() -> None:
        order = ClaimedCommand(TOPIC, "a", 1, "x", "{}", datetime.now(UTC), 1, 1)
        lease = Lease(TOPIC, "a", 1, 3600.0, time.monotonic() + 3600, 0.0, [order])
        effect, recorder, link, give_up = Late(stops=stops), Mock(), Mock(), Mock()
        effect.said = said
        recorder.record = AsyncMock(return_value="let go")
        link.run = AsyncMock(return_value=("retrying", 0))
        turns = OutsideTurns(
            Mock(), link, recorder, stop=Stop(), bell=LoopBell(), totals=Totals(), tallies=Tallies(),
            give_up=give_up,
        )  # fmt: skip
        lane, work = Lane(TOPIC, 1, None, effect, Breaker(TOPIC), timeout=timeout), Work(lease, probe=False)
        lane.in_flight.add(work)
        work.task = asyncio.create_task(turns.take(lane, work))
        await effect.begun.wait()
        if cut:
            work.cut()
        await work.task
        give_up.assert_not_called()
        if said is None:
            assert recorder.record.await_args_list == [call(LeaseStep(lease, 1, release=True))]
            link.run.assert_not_awaited()
        else:
            assert link.run.await_args.args[0].keywords["error"] == "its own error"

    asyncio.run(run())


@pytest.mark.parametrize(
    "error", [psycopg.errors.SerializationFailure("lost"), psycopg.errors.DeadlockDetected("lost")]
)
def test_what_is_lost_against_others_over_and_over_is_refused_after_ever_longer_pauses(
    monkeypatch: pytest.MonkeyPatch, error: psycopg.Error
) -> None:
    pauses: list[int] = []

    def pause(times: int) -> float:
        pauses.append(times)
        return 0.0

    monkeypatch.setattr(pacing, "again_seconds", pause)
    operation = AsyncMock(side_effect=error)

    def link(stop: Stop) -> SharedConnection:
        return SharedConnection(
            AsyncMock(return_value=Mock(closed=False, broken=False)),
            stop=stop,
            drain=False,
            recovery=Recovery(),
            check=Mock(),
            mismatch=Mock(),
        )

    for patient in (False, True):
        pauses.clear()
        operation.reset_mock()
        with pytest.raises(type(error)):
            asyncio.run(link(Stop()).run(operation, patient=patient))
        assert pauses == list(range(AGAIN_TIMES))
        assert operation.await_count == AGAIN_TIMES + 1
    operation.side_effect = [error, error, "done"]
    assert asyncio.run(link(Stop()).run(operation)) == "done"
    over = Stop()
    over.expire()
    operation.side_effect, pauses[:] = error, []
    with pytest.raises(type(error)):
        asyncio.run(link(over).run(operation, patient=True))
    assert pauses == [], "nobody waits for it"


class Done(Hanging):
    """Takes effect at once."""

    async def apply(self, order: ClaimedCommand, lease: Lease) -> None: ...


@pytest.mark.parametrize(
    ("error", "is_clear"),
    [
        (psycopg.errors.LockNotAvailable("somebody has the key locked"), None),
        (psycopg.errors.QueryCanceled("statement timeout"), None),
        (psycopg.errors.SerializationFailure("lost"), None),
        (psycopg.errors.RaiseException("refused"), True),
    ],
)
def test_progress_that_was_cut_off_is_no_failure_of_the_command(
    error: psycopg.Error, *, is_clear: bool | None
) -> None:
    """By a timeout of the session, while it waited for somebody else's lock."""

    async def run() -> Any:
        order = ClaimedCommand(TOPIC, "a", 1, "x", "{}", datetime.now(UTC), 1, 1)
        lease = Lease(TOPIC, "a", 1, 3600.0, time.monotonic() + 3600, 0.0, [order])
        recorder, link = Mock(), Mock()
        recorder.record, link.run = AsyncMock(side_effect=error), AsyncMock(return_value="put off")
        turns = OutsideTurns(
            Mock(), link, recorder, stop=Stop(), bell=LoopBell(), totals=Totals(), tallies=Tallies(),
            give_up=Mock(),
        )  # fmt: skip
        lane = Lane(TOPIC, 1, None, Done(stops=True), Breaker(TOPIC))
        await turns.take(lane, Work(lease, probe=False))
        return link.run.await_args.args[0].keywords["is_clear"]

    assert asyncio.run(run()) is is_clear


def test_whatever_an_effect_raises_fails_its_command() -> None:
    """Nobody reads what a turn's task ends with: the key would stay leased, time and again."""

    async def run() -> Any:
        order = ClaimedCommand(TOPIC, "a", 1, "x", "{}", datetime.now(UTC), 1, 1)
        lease = Lease(TOPIC, "a", 1, 3600.0, time.monotonic() + 3600, 0.0, [order])
        # Of a port that no machine has, asyncio makes an OverflowError, in a group; no topic has one.
        effect, link = HttpEffect("http://127.0.0.1:99999/", None, Timeouts()), Mock()
        link.run = AsyncMock(return_value=("retrying", 0))
        turns = OutsideTurns(
            Mock(), link, Mock(), stop=Stop(), bell=LoopBell(), totals=Totals(), tallies=Tallies(),
            give_up=Mock(),
        )  # fmt: skip
        work = Work(lease, probe=False)
        await turns.take(Lane(TOPIC, 1, None, effect, Breaker(TOPIC)), work)
        return link.run.await_args

    failed = asyncio.run(run()).args[0].keywords
    assert "OverflowError: connect(): port must be 0-65535" in failed["error"]
