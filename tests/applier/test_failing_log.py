"""A log that fails, as a handler of it may raise, ends nobody unseen, and does not stop the watchdog."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NoReturn

import psycopg
import pytest
from support.database import until

from inturn.applier import Fleet
from inturn.applier.breaker import OPENING_FAILURES, Breaker
from inturn.applier.command import ClaimedCommand
from inturn.applier.inside.hand import Hand, Overdue
from inturn.applier.inside.watchdog import Watchdog
from inturn.applier.inside.worker import Worker
from inturn.applier.outside.worker import OutsideWorker
from inturn.applier.process.crew import Crew
from inturn.applier.process.failure_log import MOST_EQUAL, FailureLog
from inturn.applier.stop import Bell, LoopBell, Stop


class _Failing(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.met = threading.Event()
        self.ask: Callable[[], bool] = lambda: True
        #: What that has answered each time.
        self.answers: list[bool] = []

    def emit(self, record: logging.LogRecord) -> NoReturn:
        self.met.set()
        self.answers.append(self.ask())
        raise OSError("the log is full")


@pytest.fixture
def failing() -> Iterator[_Failing]:
    handler, log = _Failing(), logging.getLogger("inturn.applier")
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


def _refuse(*_: object) -> NoReturn:
    raise ValueError("a fault")


async def _refuse_async() -> NoReturn:
    raise ValueError("a fault")


@pytest.mark.parametrize("kind", ["inside", "outside"])
def test_a_worker_that_a_fault_has_ended_says_so_to_its_process(failing: _Failing, kind: str) -> None:
    """Without an error its process would end well, or go on with fewer workers."""
    stop, told = Stop(), threading.Event()
    worker: Worker | OutsideWorker = Worker(
        _refuse, _refuse, schema="inturn", max_keys=1, drain=False, stop=stop, bell=Bell(1)
    )
    if kind == "outside":
        worker = OutsideWorker(
            _refuse,
            _refuse_async,
            _refuse,
            applier_id="a",
            schema="inturn",
            drain=False,
            stop=stop,
            bell=LoopBell(),
            others_run=lambda: False,
        )
    crew = Crew(told.set)
    crew.add(worker, "worker")
    assert crew.wait(60)
    assert failing.met.is_set()
    assert isinstance(crew.error, ValueError)
    assert told.is_set()


class _Stuck:
    """A worker whose handler does not return."""

    backend = None, None

    def __init__(self) -> None:
        self.hand: Hand = _Late()
        self.abandoned = False

    def cancel(self) -> None: ...

    def hang_up(self) -> None: ...

    def give_up(self) -> None:
        self.abandoned = True


class _Late(Hand):
    def overdue(self, by: float) -> Overdue | None:
        order = ClaimedCommand("shop", "a", 1, "insert", "{}", datetime.now(UTC), 1, 1)
        return Overdue(order, 1.0, is_alone=True)


def test_the_watchdog_replaces_a_stuck_worker_although_the_log_fails(
    failing: _Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was counted of failures is said by the same thread: it goes on after that failed."""
    failures, stop = FailureLog(), Stop()
    monkeypatch.setattr("inturn.applier.inside.watchdog.FAILURES", failures)
    monkeypatch.setattr("inturn.applier.process.failure_log.SAY_SECONDS", 0.0)
    failing.setLevel(logging.CRITICAL)
    for _ in range(MOST_EQUAL + 1):
        failures.log(logging.WARNING, "command failed", "an error", {"topic": "shop"})
    failing.setLevel(logging.NOTSET)
    stuck, replaced = _Stuck(), threading.Event()

    def connect() -> psycopg.Connection[Any]:
        raise psycopg.OperationalError("away")

    def replace(_worker: object, _careful: bool) -> None:
        replaced.set()
        stop.request()

    watchdog = Watchdog(
        connect, lambda: [] if stuck.abandoned else [stuck], replace, schema="inturn", stop=stop
    )
    watch = threading.Thread(target=watchdog.run, daemon=True)
    watch.start()
    until(replaced.is_set, "another worker in its place")
    watch.join(60)
    assert failing.met.is_set()


def test_a_breaker_opens_and_closes_although_the_log_fails(
    failing: _Failing, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does the log keep the other workers from it: a handler of it may take its time."""
    breaker = Breaker("shop")
    failing.ask = lambda: not breaker._lock.locked()
    with caplog.at_level(logging.INFO, "inturn.applier"):
        for key in range(OPENING_FAILURES):
            with suppress(OSError):
                breaker.failed(str(key), probe=False)
        assert (breaker.open, failing.met.is_set()) == (True, True)
        with suppress(OSError):
            breaker.succeeded()
        assert not breaker.open
    assert failing.answers == [True, True], "its lock is free"


def test_a_fleet_says_how_it_ended_although_the_log_fails(
    failing: _Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = FailureLog()
    monkeypatch.setattr("inturn.applier.fleet.FAILURES", failures)
    failing.setLevel(logging.CRITICAL)
    for _ in range(MOST_EQUAL + 1):
        failures.log(logging.WARNING, "command failed", "an error", {"topic": "shop"})
    failing.setLevel(logging.NOTSET)
    outcome = Fleet("host=nowhere.invalid").end(0)
    assert failing.met.is_set()
    assert (outcome.cut, outcome.error) == (False, None)
