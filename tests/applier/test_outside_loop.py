"""What `async def` handlers do with the loop that they run on, and what is left of it at the end."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
from contextlib import suppress
from typing import NoReturn

import psycopg
import pytest
from support.b_server import TOPIC, apply_all, open_topic, put, state
from support.database import Database, until
from support.process import inturn_apply

from inturn.applier import Applier, Command, Fleet
from inturn.applier.outside import turns
from inturn.applier.outside.effect import NoThread
from inturn.applier.outside.leases import Leases
from inturn.applier.outside.loop import MOST_THREADS, WorkLoop


def test_a_thread_of_a_coroutine_that_never_returns_does_not_keep_the_process(database: Database) -> None:
    open_topic(database, "python")
    put(database, "a", "one")
    with inturn_apply(database.dsn, "--grace", "0.1", app="support.stuck:in_a_thread") as process:
        until(lambda: "stuck" in process.out, "the handler in hand")
        process.send(signal.SIGTERM)
        assert process.exit_code() == 6
    assert state(database, "a")[:3] == ("ready", 0, 0)


def test_what_a_handler_left_on_the_loop_cleans_up_at_the_end(database: Database) -> None:
    open_topic(database, "python")
    put(database, "a", "one")
    handlers, kept, ends = Applier(), [], []

    @handlers.handler(TOPIC, outside=True)
    async def leave(_: Command) -> None:
        async def pool() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ends.append("closed")

        kept.append(asyncio.create_task(pool()))
        await asyncio.sleep(0)

    assert apply_all(database, handlers).commands == 1
    assert ends == ["closed"]


def test_a_worker_that_ends_by_an_error_does_not_wait_for_what_is_in_hand(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is recorded any more by then: a drain whose database was lost for good stayed for ever."""
    open_topic(database, "python")
    put(database, "a", "one")
    handlers, begun, refused = Applier(), threading.Event(), psycopg.errors.InsufficientPrivilege("refused")

    @handlers.handler(TOPIC, outside=True)
    async def hang(_: Command) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def refuse(*_: object, **__: object) -> NoReturn:
        while not begun.is_set():
            await asyncio.sleep(0)
        raise refused

    monkeypatch.setattr(Leases, "announce_sleep", refuse)
    fleet = Fleet(database.applier_dsn, handlers, drain=True)
    fleet.start()
    assert fleet.wait(60)
    assert fleet.end(1).error is refused


def test_what_is_given_to_threads_runs_in_so_many_at_a_time_and_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place: contextvars.ContextVar[int] = contextvars.ContextVar("place")
    together = threading.Barrier(MOST_THREADS)

    def run(number: int) -> int:
        together.wait(60)  # nobody goes on before as many threads are there, and there are no more
        if number % 2:
            raise ValueError(number)
        return place.get()

    async def give() -> list[int | BaseException]:
        place.set(7)
        calls = [asyncio.to_thread(run, number) for number in range(3 * MOST_THREADS)]
        return await asyncio.gather(*calls, return_exceptions=True)

    with asyncio.Runner(loop_factory=WorkLoop) as runner:
        found = runner.run(give())
        assert [str(one) for one in found] == [
            str(number) if number % 2 else "7" for number in range(3 * MOST_THREADS)
        ]
        until(
            lambda: not any(thread.name == "inturn-to-thread" for thread in threading.enumerate()),
            "their end",
        )

        def refuse(_thread: threading.Thread) -> NoReturn:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(NoThread):
            runner.run(asyncio.to_thread(run, 0))


def test_a_coroutine_that_heeds_neither_a_cut_nor_a_cancel_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or its key's place in the process would be taken for as long as it goes on."""
    monkeypatch.setattr(turns, "GIVE_UP_SECONDS", 0.02)

    async def cut() -> bool:
        over, began = asyncio.Event(), asyncio.Event()

        async def heeds_nothing() -> None:
            while not over.is_set():
                began.set()
                with suppress(asyncio.CancelledError):
                    await over.wait()

        within = asyncio.create_task(turns._apply_within(heeds_nothing(), 0.02, stops=True))
        await began.wait()
        within.cancel()
        await asyncio.wait([within], timeout=60)
        over.set()
        with pytest.raises(turns._Overdue) as late:
            await within
        return late.value.ended

    assert asyncio.run(cut()) is False
