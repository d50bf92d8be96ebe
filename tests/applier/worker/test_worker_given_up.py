"""A worker whose handler does not return is given up, and another has its place."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from typing import NoReturn

import psycopg
import pytest
from support import shop
from support.b_server import TOPIC, open_topic, put_keys
from support.database import Database, until
from support.process import run_inturn

from inturn.applier import Applier, Command, pacing
from inturn.applier.inside.blame import Blame

pytestmark = pytest.mark.usefixtures("release")


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Lets the handler return that hangs."""
    monkeypatch.setattr("inturn.applier.inside.watchdog.GIVE_UP_SECONDS", 0.1)
    made = threading.Event()
    yield made
    made.set()


def _hanging(database: Database, release: threading.Event) -> tuple[Applier, threading.Event]:
    """Append to a key whose handler hangs and to another; return handlers, and what the first one sets."""
    shop.open_shop(database, settings="timeout => '500 ms', max_attempts => 1")
    shop.append(database, "bad", "insert")
    shop.append(database, "good", "insert")
    handlers, in_hand = Applier(), threading.Event()

    @handlers.handler(shop.TOPIC)
    def handle(connection: psycopg.Connection[object], command: Command) -> None:
        if command.key == "bad":
            in_hand.set()
            release.wait(60)
        shop.write_witness(connection, command)

    return handlers, in_hand


def test_a_process_with_one_worker_goes_on_when_that_is_given_up(
    database: Database, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until another has its place no worker is at work: that looked as if all was done."""
    given_up, go_on = threading.Event(), threading.Event()

    def note(*_: object) -> NoReturn:
        given_up.set()
        go_on.wait(60)
        raise psycopg.errors.QueryCanceled

    monkeypatch.setattr(Blame, "note", note)
    handlers, _ = _hanging(database, release)
    with shop.at_work(database, handlers, workers=1, steady=False) as fleet:
        try:
            assert given_up.wait(60)
            (hanging,) = fleet._crew._threads.values()
            assert (fleet.running, fleet.wait(0)) == (True, False)
            assert fleet._crew.inside_runs(), "a drain outside waits for what it may append"
            release.set()
            hanging.join(60)
            assert (fleet.running, fleet.wait(0)) == (True, False), "also where its handler has returned"
            # The other key's command may take long, on a busy machine.
            database.execute("UPDATE inturn.topic SET timeout = NULL")
        finally:
            go_on.set()
        until(lambda: shop.applied(database, "good"), "the other key")
        assert fleet.running


def test_a_handler_that_does_not_return_is_given_up_after_a_stop_too(
    database: Database, release: threading.Event
) -> None:
    """Otherwise the end waits out its grace, cuts the command off, and the next process begins it again."""
    handlers, in_hand = _hanging(database, release)
    with shop.at_work(database, handlers, workers=1, steady=False) as fleet:
        assert in_hand.wait(60)
        fleet.request_stop()
        assert fleet.wait(60)
        outcome = fleet.end(0)
    assert (outcome.cut, outcome.error, outcome.held) == (False, None, 1)
    error = database.value("SELECT last_error FROM inturn.key_cursor WHERE key = 'bad'")
    assert "timeout of 0.5 s" in error


def test_status_says_how_many_handlers_a_process_has_abandoned(
    database: Database, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of both kinds of handlers."""
    monkeypatch.setattr("inturn.applier.outside.turns.GIVE_UP_SECONDS", 0.1)
    monkeypatch.setattr(pacing, "CHOOSE_SECONDS", 0.05)
    handlers, _ = _hanging(database, release)
    open_topic(database, "python", "timeout => '50 ms', max_attempts => 1")
    put_keys(database, 2)
    handlers.handler(TOPIC, outside=True)(lambda _: release.wait(60))
    with shop.at_work(database, handlers, workers=1, steady=False):
        announced = "SELECT max(abandoned) FROM inturn.list_appliers() WHERE alive"
        until(lambda: database.value(announced) == 3, "three announced")
        _, said, _ = run_inturn(database.dsn, "status")
    process = f"process {os.getpid()} on {socket.gethostname()}"
    assert f"{process} has abandoned 3 handlers that did not return" in said
