"""NOTIFY, which anybody may send, wakes an idle applier a few times a second, and for its own topics only."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import psycopg
import pytest
from support.database import Database, until
from support.logins import login
from support.shop import TOPIC, append, at_work, open_shop, wait_applied

from inturn.applier import pacing
from inturn.applier.inside.rounds import Rounds
from inturn.applier.outside.claims import Claims
from inturn.applier.pacing import VAIN_WAKES, VAIN_WAKES_A_SECOND, Wakes
from inturn.applier.stop import Bell, LoopBell


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_vain_wakes_are_a_burst_and_then_a_few_a_second() -> None:
    clock = Clock()
    wakes = Wakes(clock)
    for _ in range(VAIN_WAKES):
        assert wakes.seconds == 0
        wakes.spend(found=False)
    assert 0 < wakes.seconds <= 1 / VAIN_WAKES_A_SECOND
    heard = 0
    for _ in range(1000):  # 350 rings a second
        clock.now += 1 / 350
        if wakes.seconds == 0:
            heard += 1
            wakes.spend(found=False)
    assert heard <= 1000 / 350 * VAIN_WAKES_A_SECOND + 1


def test_a_wake_that_finds_something_costs_nothing() -> None:
    wakes = Wakes(Clock())
    for _ in range(100):
        wakes.spend(found=False)
    wakes.spend(found=True)
    assert wakes.seconds == 0


def test_a_bell_does_not_hear_of_what_is_not_served() -> None:
    bell = Bell(1)
    bell.serve([TOPIC])
    for number in range(1000):
        bell.ring(f"other-{number}")
    assert bell.wait(0) is None
    bell.ring(TOPIC)
    assert bell.wait(0) == frozenset([TOPIC])


def test_what_a_deaf_bell_did_not_hear_is_heard_later_and_a_ring_for_all_at_once() -> None:
    clock = Clock()
    bell = Bell(1, clock)
    bell.serve([TOPIC])
    for _ in range(VAIN_WAKES):
        bell.ring(TOPIC)
        assert bell.wait(0) == frozenset([TOPIC])
        bell.looked(found=False)
    bell.ring(TOPIC)
    assert bell.wait(0) is None
    bell.ring()
    assert bell.wait(0) == frozenset()
    clock.now += 1 / VAIN_WAKES_A_SECOND
    assert bell.wait(0) == frozenset([TOPIC])


def test_a_ring_in_time_wakes_one_of_those_that_sleep() -> None:
    bell = Bell(2)
    bell.serve([TOPIC])
    heard: list[frozenset[str] | None] = []
    threads = [threading.Thread(target=lambda: heard.append(bell.wait(60)), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for count in (1, 2):
        bell.ring(TOPIC)
        until(lambda count=count: len(heard) >= count, "a worker woke")  # type: ignore[misc]
    assert heard == [frozenset([TOPIC])] * 2


def test_a_bell_of_a_loop_tells_it_once_and_of_what_is_served_only() -> None:
    async def scene() -> None:
        clock, told = Clock(), 0
        bell = LoopBell(clock)
        loop = asyncio.get_running_loop()
        bell.attach(loop)
        assert await bell.wait(30)
        assert bell.rung()
        bell.serve([TOPIC])
        call = loop.call_soon_threadsafe

        def counted(callback: Callable[..., object], *args: object) -> asyncio.Handle:
            nonlocal told
            told += 1
            return call(callback, *args)

        loop.call_soon_threadsafe = counted  # type: ignore[assignment, method-assign]
        for number in range(1000):
            bell.ring(f"other-{number}")
        assert told == 0
        for _ in range(VAIN_WAKES):
            for _ in range(1000):
                bell.ring(TOPIC)
            assert await bell.wait(30)
            assert bell.rung()
            bell.looked(found=False)
        assert told == VAIN_WAKES
        bell.ring(TOPIC)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not bell.rung()
        clock.now += 1
        assert await bell.wait(30), "what it did not hear at once it hears later"

    asyncio.run(scene())


class Flood:
    """Notifies as fast as it can, from a login with no right of inturn's, until it is ended."""

    def __init__(self, database: Database, payloads: list[str]) -> None:
        self._connection = psycopg.connect(login(database), autocommit=True)
        self._payloads = payloads
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sent = 0

    def _run(self) -> None:
        while not self._ended.is_set():
            for payload in self._payloads:
                self._connection.execute("SELECT pg_notify('inturn.ready', %s)", [payload])
                self.sent += 1

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._connection.close()


def _counted_looks(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[float]:
    """Count what a worker looks for in the database; return when."""
    looks: list[float] = []
    real = getattr(owner, name)

    def look(self: object, *args: object, **options: object) -> object:
        looks.append(time.monotonic())
        return real(self, *args, **options)

    monkeypatch.setattr(owner, name, look)
    return looks


@pytest.mark.parametrize("payloads", [[TOPIC], ["other", "x" * 200, ""]], ids=["served", "not served"])
def test_a_flood_costs_an_idle_worker_few_statements(
    database: Database, monkeypatch: pytest.MonkeyPatch, payloads: list[str]
) -> None:
    open_shop(database)
    looks = _counted_looks(monkeypatch, Rounds, "_apply_ready")
    with at_work(database):
        until(lambda: database.value("SELECT count(*) FROM inturn.listener"), "the first sleep")
        with Flood(database, payloads) as flood:
            until(lambda: flood.sent > 1500, "a flood", 90)
            began, first = time.monotonic(), len(looks)
            sent = flood.sent
            until(lambda: flood.sent > sent + 1500, "more of it", 90)
            seconds, made = time.monotonic() - began, len(looks) - first
            append(database, "k", "insert")
            wait_applied(database, "k")
    # What it looks for unasked, and with each announcement once more; then what it hears.
    unasked = 2 + 3 * seconds / pacing.ANNOUNCED_SECONDS + 8
    heard = VAIN_WAKES + 2 * VAIN_WAKES_A_SECOND * seconds if payloads == [TOPIC] else 0
    assert made <= unasked + heard, (made, seconds)
    assert made < 1000


def test_a_flood_costs_an_idle_applier_of_outside_topics_few_claims(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_shop(database)
    database.execute("SELECT inturn.create_topic('posts', 'http://127.0.0.1:1/')")
    looks = _counted_looks(monkeypatch, Claims, "make")
    with at_work(database, topics=["posts"]):
        until(lambda: looks, "the first look")
        with Flood(database, ["posts"]) as flood:
            until(lambda: flood.sent > 1500, "a flood", 90)
            began, first, sent = time.monotonic(), len(looks), flood.sent
            until(lambda: flood.sent > sent + 1500, "more of it", 90)
            seconds, made = time.monotonic() - began, len(looks) - first
    assert made <= VAIN_WAKES + (2 * VAIN_WAKES_A_SECOND + 4) * seconds + 8, (made, seconds)
