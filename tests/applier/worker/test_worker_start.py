"""The start of `inturn apply`: it heeds a stop while it connects, and what goes wrong cuts nothing off."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.database import Database
from support.place import TESTS
from support.process import inturn_apply
from support.processes import options
from support.shop import append, applied, applier, open_shop

from inturn.applier import Fleet
from inturn.applier.process.connections import Connections
from inturn.applier.process.threads import NoThread
from inturn.cli.run.processes import Processes
from inturn.cli.run.serve import begun


@pytest.fixture
def away() -> Iterator[socket.socket]:
    """Something that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


def _dsn(away: socket.socket) -> str:
    return make_conninfo(host="127.0.0.1", port=away.getsockname()[1], user="me", dbname="shop")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_signal_ends_a_process_that_connects(away: socket.socket, processes: str) -> None:
    """Otherwise it ends when the time to connect is over, as if the database could not be reached."""
    with inturn_apply(_dsn(away), "--processes", processes) as process:
        with away.accept()[0]:
            process.send(signal.SIGTERM)
            assert process.exit_code() == 0
        assert (process.out, process.err) == ("", "")


def test_a_stop_ends_the_processes_that_connect(away: socket.socket) -> None:
    """Nothing is in hand: none is killed, or takes until the time to connect is over."""
    with Processes(options(_dsn(away)), 2, lambda: 1) as pair:
        pair.start()
        first, second = away.accept()[0], away.accept()[0]
        with first, second:
            outcome = pair.end(60)
    assert (outcome.error, outcome.cut, pair.ran) == (None, False, False)


def test_a_fleet_that_was_asked_to_stop_starts_nothing_once_it_is_connected(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_shop(database)
    connecting, answer, connect = threading.Event(), threading.Event(), Connections.connect
    fleet, ended = Fleet(database.applier_dsn, applier), threading.Event()

    def slow(connections: Connections) -> psycopg.Connection[Any]:
        connecting.set()
        answer.wait(60)
        return connect(connections)

    def start() -> None:
        fleet.start()
        ended.set()

    with monkeypatch.context() as far:
        far.setattr(Connections, "connect", slow)
        assert not begun(start, lambda: int(connecting.wait(60)))
        outcome = fleet.end(0)
        answer.set()
        assert ended.wait(60)
    assert (outcome.cut, outcome.error, outcome.held, fleet._crew.workers) == (False, None, None, [])


def test_what_keeps_a_process_from_its_start_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        begun(lambda: 1 / 0, lambda: 0)


def test_a_process_without_a_thread_for_all_of_its_helpers_ends_those_that_have_begun(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_shop(database)
    start = threading.Thread.start

    def start_no_listener(thread: threading.Thread) -> None:
        if thread.name == "inturn-listener":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_no_listener)
    fleet = Fleet(database.applier_dsn, applier)
    with pytest.raises(NoThread, match="no thread for inturn-listener"):
        fleet.start()
    assert fleet.wait(60)
    assert fleet.end(0).error is None


_BROKEN = """
import queue, threading
from inturn.applier import Applier
from inturn.cli.run import apply as command
from support.shop import write_witness

applier, fleets, in_hand = Applier(), queue.Queue(), threading.Event()

@applier.handler("shop")
def handle(connection, command):
    in_hand.set()
    fleets.get(timeout=60).stop.wait(60)
    write_witness(connection, command)

def refuse(fleet, *_):
    fleets.put(fleet)
    in_hand.wait(60)
    raise ZeroDivisionError

command._attend = refuse
"""


def test_a_fault_of_the_process_lets_the_command_in_hand_end(database: Database, tmp_path: Path) -> None:
    """As where the bar of a drain cannot count what is ready, or the log cannot be written."""
    open_shop(database)
    append(database, "a", "insert")
    (tmp_path / "broken_app.py").write_text(_BROKEN)
    path = os.pathsep.join([str(TESTS), str(tmp_path)])
    with inturn_apply(database.dsn, app="broken_app:applier", PYTHONPATH=path) as process:
        assert process.exit_code() == 1
        assert "ZeroDivisionError" in process.err
    assert applied(database, "a") == [1]
