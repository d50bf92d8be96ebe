"""The threads that look after the workers go on, whatever they meet: nobody would see that one has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, Self, cast

import psycopg
import pytest
from support import shop
from support.database import Database

from inturn.applier import Applier, Command, calls
from inturn.applier.process import half_open
from inturn.applier.process.connections import Connections
from inturn.applier.process.half_open import HalfOpen, Timed
from inturn.applier.process.listener import Listener
from inturn.applier.process.threads import NoThread, start_thread
from inturn.applier.stop import Bell, Stop
from inturn.schema.errors import InturnError


class _Unreadable:
    """A connection that hears what is not in its encoding, as anybody may send in a database of SQL_ASCII."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def execute(self, _statement: object) -> None: ...

    def notifies(self, **_options: object) -> NoReturn:
        b"\xff".decode()
        raise AssertionError


def _run(run: Callable[[], None]) -> None:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def test_the_listener_listens_again_whatever_it_has_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inturn.applier.process.listener._RECONNECT_SECONDS", 0.0)
    stop, times = Stop(), 0

    def connect() -> psycopg.Connection[Any]:
        nonlocal times
        times += 1
        if times == 3:
            stop.request()
        return cast(psycopg.Connection[Any], _Unreadable())

    _run(Listener(connect, schema="inturn", stop=stop, bell=Bell(1)).run)
    assert times == 3


class _Waiting:
    """A connection that has waited for long."""

    waiting_since = time.monotonic() - 1000.0


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_half_open_connections_are_looked_for_again_once_there_is_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(half_open, "LOOK_SECONDS", 0.0)
    stop, tries, waiting = Stop(), 0, [cast(Timed, _Waiting())]

    def start(run: Callable[[], None], name: str) -> threading.Thread:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise NoThread("no thread")
        waiting.clear()
        return start_thread(run, name)

    def connect() -> psycopg.Connection[Any]:
        raise InturnError("a pooler without transactions is in between by now")

    monkeypatch.setattr(half_open, "start_thread", start)
    stop.request()
    _run(HalfOpen(connect, lambda: list(waiting), stop).run)
    assert tries == 3


def test_a_session_of_the_same_number_on_another_server_is_not_ended(database: Database) -> None:
    """After a failover it may be one of ours: whatever it has in hand would be charged."""
    connections = Connections(database.applier_dsn, None)
    with connections.connect() as asking, connections.connect() as other:
        (timed,) = [each for each in connections.open() if each is other]
        assert timed.server
        pid = other.info.backend_pid
        for server in ("another run", None):
            calls.session.terminate(pid, server, 5000).on(asking)
        other.execute("SELECT")
        asking.execute("SET TIME ZONE 'Asia/Tokyo'")
        calls.session.terminate(pid, timed.server, 5000).on(asking)
        with pytest.raises(psycopg.OperationalError):
            other.execute("SELECT")


def test_a_worker_says_of_which_server_its_session_is(database: Database) -> None:
    shop.open_shop(database)
    shop.append(database, "a", "insert")
    handlers, in_hand, release = Applier(), threading.Event(), threading.Event()

    @handlers.handler(shop.TOPIC)
    def handle(connection: psycopg.Connection[Any], command: Command) -> None:
        in_hand.set()
        release.wait(60)

    with shop.at_work(database, handlers) as fleet:
        try:
            assert in_hand.wait(60)
            (worker,) = fleet._crew.watched()
            pid, server = worker.backend
            with Connections(database.applier_dsn, None).connect() as asking:
                assert server == calls.session.server().on(asking)
                state = "SELECT state FROM pg_stat_activity WHERE pid = %s"
                assert asking.execute(state, [pid]).fetchall() == [("idle in transaction",)]
        finally:
            release.set()
