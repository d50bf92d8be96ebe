"""wait and wait_async from Python, by every kind of connection."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, cast
from unittest.mock import Mock

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import NullPool, QueuePool, create_engine
from sqlalchemy.ext.asyncio import async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import scoped_session, sessionmaker
from support.callers import CALLERS, Caller, Pause, Step
from support.database import PATIENCE, Database, until
from support.roles import CALLER, OWNER

from inturn.outbox import (
    KeyHeld,
    KeyRefused,
    SeqRefused,
    UnknownKey,
    UnknownTopic,
    Waited,
    WaitTimedOut,
    WrongIsolation,
    append,
    append_async,
    wait,
    wait_async,
)
from inturn.outbox.bounded import Guard, made_within
from inturn.outbox.one_wait import CanListen, Fetch, OneWait, Sleep
from inturn.outbox.session import _AsyncListening, _Deaf, _Listening

#: Whether psycopg keeps a notification that comes while a statement runs.
KEEPS = tuple(map(int, psycopg.__version__.split(".")[:3])) >= (3, 2, 4)
every_caller = pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS.keys())
WAITS = "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'wait_state' AND pid <> pg_backend_pid()"


def apply_when(database: Database, condition: Callable[[], Any]) -> Callable[[], None]:
    """Return what appends a command to key a, and applies it, once the condition holds."""

    def apply() -> None:
        until(condition, "the wait")
        append(database.connect(user=CALLER), "orders", "a", "insert")
        database.execute("CALL inturn.apply()")

    return apply


@every_caller
def test_a_wait_ends_when_the_key_is_applied_meanwhile(witness: Database, caller: Caller) -> None:
    announced = lambda: witness.value("SELECT count(*) FROM inturn.waiter")  # noqa: E731
    with witness.beside(apply_when(witness, announced)):
        assert caller(witness, Pause("orders", "a", 1, timeout=None)) == [Waited(1, False)]


@every_caller
def test_in_a_transaction_it_is_refused(witness: Database, caller: Caller) -> None:
    with pytest.raises(WrongIsolation, match="Commit first") as raised:
        caller(witness, Step("orders", "a", "insert"), Pause("orders", "a", 1))
    assert (raised.value.topic, raised.value.key, raised.value.seq) == ("orders", "a", 1)


@every_caller
def test_what_stands_in_the_way_is_told_apart(witness: Database, caller: Caller) -> None:
    append(witness.connect(user=CALLER), "orders", "a", "insert")
    with pytest.raises(WaitTimedOut) as late:
        caller(witness, Pause("orders", "a", timeout=0))
    assert (late.value.seq, late.value.applied_seq, late.value.state) == (1, 0, "ready")
    witness.execute(
        "SELECT inturn.fail('orders', key, epoch, 1, 1, 'no', 'me', 'hold') FROM inturn.claim('orders')"
    )
    with pytest.raises(KeyHeld) as held:
        caller(witness, Pause("orders", "a", 2, timeout=None))
    assert (held.value.seq, held.value.applied_seq, held.value.state) == (2, 0, "held")
    assert held.value.since == witness.value("SELECT held_at FROM inturn.key_cursor")
    witness.execute("SELECT inturn.skip('orders', 'a', 1, 'wrong')")
    assert caller(witness, Pause("orders", "a", 1)) == [Waited(1, True)]
    with pytest.raises(UnknownTopic):
        caller(witness, Pause("order", "a", 1))
    with pytest.raises(UnknownKey):
        caller(witness, Pause("orders", "b"))


def test_a_registry_of_sessions_is_taken_as_its_session(witness: Database) -> None:
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(witness.caller_dsn), poolclass=NullPool
    )
    registry = scoped_session(sessionmaker(engine))
    assert append(registry, "orders", "a", "insert") == 1
    registry.commit()
    with pytest.raises(WaitTimedOut):
        wait(registry, "orders", "a", 1, timeout=0)
    registry.remove()


def test_an_async_registry_of_sessions_is_taken_as_its_session(witness: Database) -> None:
    async def run() -> None:
        engine = create_async_engine(
            "postgresql+psycopg://",
            async_creator=lambda: psycopg.AsyncConnection.connect(witness.caller_dsn),
            poolclass=NullPool,
        )
        registry = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
        assert await append_async(registry, "orders", "a", "insert") == 1
        await registry.commit()
        with pytest.raises(WaitTimedOut):
            await wait_async(registry, "orders", "a", 1, timeout=0)
        await registry.remove()

    asyncio.run(run())


@pytest.mark.parametrize("autocommit", [True, False])
def test_afterwards_the_connection_is_as_it_was(witness: Database, autocommit: bool) -> None:
    connection = witness.connect(user=CALLER, autocommit=autocommit)
    with pytest.raises(WaitTimedOut):
        wait(connection, "orders", "a", 1, timeout=0.1)
    assert connection.autocommit is autocommit
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert connection.execute("SELECT count(*) FROM pg_listening_channels()").fetchone() == (0,)
    connection.commit()
    witness.execute("SELECT pg_notify(inturn._wait_channel('orders', 'a'), '')")
    assert list(connection.notifies(timeout=0)) == []


def test_a_session_that_listens_to_something_loses_no_notification(witness: Database) -> None:
    connection = witness.connect(user=CALLER)
    connection.execute("LISTEN mine")
    witness.execute("NOTIFY mine, 'first'")
    with witness.beside(apply_when(witness, lambda: witness.value(WAITS))):
        assert wait(connection, "orders", "a", 1, timeout=None) == Waited(1, False)
    witness.execute("NOTIFY mine, 'last'")
    heard = []
    for notify in connection.notifies(timeout=30):
        heard.append(notify.payload)
        if notify.payload == "last":
            break
    assert heard == ["first", "last"] or not KEEPS
    assert witness.value("SELECT count(*) FROM inturn.waiter") == 0, "it was not announced"
    assert connection.execute("SELECT pg_listening_channels()").fetchall() == [("mine",)]


def test_an_async_session_that_listens_to_something_loses_no_notification(witness: Database) -> None:
    async def run() -> list[str]:
        async with await psycopg.AsyncConnection.connect(witness.caller_dsn, autocommit=True) as connection:
            await connection.execute("LISTEN mine")
            witness.execute("NOTIFY mine, 'first'")
            with pytest.raises(WaitTimedOut):
                await wait_async(connection, "orders", "a", 1, timeout=0)
            witness.execute("NOTIFY mine, 'last'")
            heard = []
            async for notify in connection.notifies(timeout=30):
                heard.append(notify.payload)
                if notify.payload == "last":
                    break
            return heard

    assert asyncio.run(run()) == ["first", "last"] or not KEEPS


@pytest.mark.parametrize("because", ["a pooler", "a standby"])
def test_where_it_cannot_listen_it_looks_again(
    witness: Database, monkeypatch: pytest.MonkeyPatch, because: str
) -> None:
    connection = witness.connect(user=CALLER)
    if because == "a pooler":  # which tells of another backend
        monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", property(lambda _: 0))
    else:
        connection.execute("SET default_transaction_read_only = on")
    with witness.beside(apply_when(witness, lambda: witness.value(WAITS))):
        assert wait(connection, "orders", "a", 1, timeout=None) == Waited(1, False)
    assert witness.value("SELECT count(*) FROM inturn.waiter") == 0


def test_on_another_driver_it_looks_again(witness: Database) -> None:
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(witness.caller_dsn), poolclass=NullPool
    )
    slept: list[float] = []
    with engine.connect() as connection:
        session = _Deaf(connection)
        steps = OneWait("orders", "a", 1, None, None, "inturn").steps()
        step = steps.send(None)
        while len(slept) < 5:
            assert isinstance(step, Fetch | CanListen | Sleep)
            slept += [step.seconds] if isinstance(step, Sleep) else []
            step = steps.send(session.do(step))
            assert not connection.in_transaction()
    assert slept == sorted(slept)
    assert 0.01 <= slept[0] <= slept[-1] <= 1


def test_a_wait_outlives_the_loss_of_its_announcement(
    witness: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inturn.outbox.one_wait.ANNOUNCE_SECONDS", 0.2)
    announcements = lambda: witness.value("SELECT count(*) FROM inturn.waiter")  # noqa: E731

    def apply() -> None:
        until(announcements, "the wait")
        witness.execute("TRUNCATE inturn.waiter")  # as a crash does
        until(announcements, "the wait announced anew")
        apply_when(witness, lambda: True)()

    with witness.beside(apply):
        assert wait(witness.connect(user=CALLER), "orders", "a", 1, timeout=None) == Waited(1, False)


def test_a_lost_connection_is_said_in_the_driver_s_words(witness: Database) -> None:
    connection = witness.connect(user=CALLER, autocommit=False)

    def kill() -> None:
        until(lambda: witness.value("SELECT count(*) FROM inturn.waiter"), "the wait")
        witness.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])

    with witness.beside(kill), pytest.raises(psycopg.OperationalError):
        wait(connection, "orders", "a", 1, timeout=None)
    assert connection.closed


def test_a_cancelled_wait_leaves_a_connection_that_can_be_used(witness: Database) -> None:
    async def run() -> list[Any]:
        async with await psycopg.AsyncConnection.connect(witness.caller_dsn) as connection:
            waiting = asyncio.create_task(wait_async(connection, "orders", "a", 1, timeout=None))
            while not witness.value("SELECT count(*) FROM inturn.waiter"):
                await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            cursor = await connection.execute("SELECT count(*) FROM pg_listening_channels()")
            return [await cursor.fetchone(), connection.autocommit]

    assert asyncio.run(run()) == [(0,), False]


def test_a_wait_that_is_cancelled_as_it_ends_leaves_no_autocommit(
    witness: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = _AsyncListening._execute

    async def cancelled(self: _AsyncListening, query: Any, parameters: Any = None) -> Any:
        if isinstance(query, sql.Composed) and query.as_string(None).startswith("UNLISTEN"):
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        return await execute(self, query, parameters)

    async def run() -> bool:
        async with await psycopg.AsyncConnection.connect(witness.caller_dsn) as connection:
            waiting = asyncio.create_task(wait_async(connection, "orders", "a", 1, timeout=0.1))
            with pytest.raises(asyncio.CancelledError):
                await waiting
            return bool(connection.autocommit)

    monkeypatch.setattr(_AsyncListening, "_execute", cancelled)
    assert asyncio.run(run()) is False, "appends that follow would commit without their caller"


def test_a_wait_that_is_interrupted_as_it_ends_leaves_no_autocommit(
    witness: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = _Listening._execute

    def interrupted(self: _Listening, query: Any, parameters: Any = None) -> Any:
        if isinstance(query, sql.Composed) and query.as_string(None).startswith("UNLISTEN"):
            raise KeyboardInterrupt
        return execute(self, query, parameters)

    connection = witness.connect(user=CALLER, autocommit=False)
    monkeypatch.setattr(_Listening, "_execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wait(connection, "orders", "a", 1, timeout=0.1)
    assert connection.autocommit is False


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, -math.inf])
def test_a_timeout_that_is_none_is_refused(witness: Database, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout is"):
        wait(witness.connect(user=CALLER), "orders", "a", 1, timeout=timeout)


@pytest.mark.parametrize("timeout", [math.inf, 1e300, None])
def test_a_timeout_may_be_as_long_as_one_likes(witness: Database, timeout: float | None) -> None:
    with witness.beside(apply_when(witness, lambda: witness.value("SELECT count(*) FROM inturn.waiter"))):
        assert wait(witness.connect(user=CALLER), "orders", "a", 1, timeout=timeout) == Waited(1, False)


def test_an_answer_that_does_not_come_is_given_up_and_the_connection_with_it(
    witness: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inturn.outbox.bounded.ANSWER_SECONDS", 0.02)
    locked = witness.connect(user=OWNER, autocommit=False)
    locked.execute("LOCK TABLE inturn.topic")
    connection = witness.connect(user=CALLER)
    with pytest.raises(WaitTimedOut, match=r"'a' of topic 'orders' .* has not answered") as found:
        wait(connection, "orders", "a", 1, timeout=0)
    assert connection.closed
    assert (found.value.seq, found.value.applied_seq, found.value.state) == (1, None, None)

    async def run() -> None:
        async with await psycopg.AsyncConnection.connect(witness.caller_dsn) as other:
            with pytest.raises(WaitTimedOut, match="has not answered"):
                await wait_async(other, "orders", "a", 1, timeout=0)
            assert other.closed

    asyncio.run(run())
    locked.rollback()


def test_what_is_made_too_late_is_closed() -> None:
    late, go_on = Mock(), threading.Event()

    def connect() -> Mock:
        go_on.wait(PATIENCE)
        return late

    with pytest.raises(TimeoutError):
        made_within(0, connect)
    assert not late.close.called
    go_on.set()
    until(lambda: late.close.called, "the close of what came late")


def test_an_answer_in_time_leaves_the_connection(witness: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inturn.outbox.bounded.ANSWER_SECONDS", 0)
    connection = witness.connect(user=CALLER)
    append(connection, "orders", "a", "insert")
    witness.execute("CALL inturn.apply()")
    struck = threading.Event()
    monkeypatch.setattr(Guard, "_strike", lambda _: struck.set())
    assert wait(connection, "orders", "a", 1, timeout=1000) == Waited(1, False)
    assert not struck.is_set()
    until(lambda: not any(isinstance(t, threading.Timer) for t in threading.enumerate()), "its timer's end")


def test_a_pool_that_gives_no_connection_in_time_is_given_up(
    witness: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inturn.outbox.bounded.ANSWER_SECONDS", 0.02)
    only_one = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 600}
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(witness.caller_dsn), **only_one
    )
    pool = cast(QueuePool, engine.pool)
    with engine.connect(), sessionmaker(engine)() as session:
        with pytest.raises(WaitTimedOut, match="no connection to the database was made in time"):
            wait(session, "orders", "a", 1, timeout=0)
        assert pool.checkedout() == 1
    until(lambda: pool.checkedout() == 0, "what comes late is given back")
    engine.dispose()

    async def run() -> None:
        async_engine = create_async_engine(
            "postgresql+psycopg://",
            async_creator=partial(psycopg.AsyncConnection.connect, witness.caller_dsn),
            **only_one,
        )
        async with async_engine.connect(), async_sessionmaker(async_engine)() as session:
            with pytest.raises(WaitTimedOut, match="no connection to the database was made in time"):
                await wait_async(session, "orders", "a", 1, timeout=0)
        await async_engine.dispose()

    asyncio.run(run())


@pytest.mark.parametrize("seq", [-1, True, "1", 1.0, 2**63])
def test_a_seq_that_no_command_can_have_is_refused(witness: Database, seq: Any) -> None:
    with pytest.raises(SeqRefused):
        wait(witness.connect(user=CALLER), "orders", "a", seq)


def test_a_key_that_cannot_be_one_is_refused(witness: Database) -> None:
    for key in ("", "\0", "x" * 513):
        with pytest.raises(KeyRefused):
            wait(witness.connect(user=CALLER), "orders", key, 1)
