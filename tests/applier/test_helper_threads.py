"""The threads that look after the workers go on, whatever they meet: nobody would see that one has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, Self, cast

import psycopg
import pytest

from inturn.applier.process import half_open
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
