"""The start of `inturn apply`: a stop is heeded while it connects."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.database import Database
from support.process import inturn_apply
from support.processes import options
from support.shop import applier, open_shop

from inturn.applier import Fleet
from inturn.applier.process.connections import Connections
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
