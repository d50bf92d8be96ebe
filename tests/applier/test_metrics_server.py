"""The server of metrics: it answers whatever it is asked for, and whatever the database does."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.database import Database
from support.proxy import Proxy
from support.roles import APPLIER

from inturn.applier.metrics.exposition import OLDER, OPENMETRICS, expose, form_of
from inturn.applier.metrics.reading import Reader, Reading, parts
from inturn.applier.metrics.server import MOST_CLIENTS, MetricsServer, Said
from inturn.schema.connection import connect

UP = (b"up 1\n", "text/plain")
#: As Prometheus 3 sends it.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@contextlib.contextmanager
def serving(read: Callable[[], Said]) -> Iterator[MetricsServer]:
    server = MetricsServer("127.0.0.1", 0, read)
    server.start()
    try:
        yield server
    finally:
        server.close()


def _scrape(server: MetricsServer, accept: str = "*/*") -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return bytes(answer.read())


@pytest.mark.parametrize("refused", ["process_request_thread", "timer"])
def test_threads_that_cannot_be_started_take_no_slot_for_good(
    monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    start: Callable[[threading.Thread], None] = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if isinstance(thread, threading.Timer) if refused == "timer" else refused in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading, "excepthook", lambda _args: None)
    with serving(lambda: lambda _accept: UP) as server:
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", refuse)
            for _ in range(MOST_CLIENTS + 1):
                with contextlib.suppress(OSError):
                    _scrape(server)
        assert _scrape(server) == b"up 1\n"


def test_what_cannot_be_served_is_answered_and_logged_and_the_next_scrape_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = [RuntimeError("a fault of ours")]

    def read() -> Said:
        if faults:
            raise faults.pop()
        return lambda _accept: UP

    with serving(read) as server:
        with pytest.raises(urllib.error.HTTPError) as refused:
            _scrape(server)
        assert refused.value.code == 500
        refused.value.close()
        assert "a fault of ours" in caplog.text
        assert _scrape(server) == b"up 1\n"


def test_scrapes_in_two_forms_cost_the_database_no_more_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inturn.applier.metrics.server.FRESH_SECONDS", 3600.0)
    read = 0

    def count() -> Said:
        nonlocal read
        read += 1
        return lambda accept: (accept.encode(), "text/plain")

    with serving(count) as server:
        assert [_scrape(server, form) for form in ("a", "b", "a")] == [b"a", b"b", b"a"]
    assert read == 1


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (PROMETHEUS, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text; version=1.0.0; escaping=dots", OPENMETRICS),
        ("application/openmetrics-text; version=9.0", OPENMETRICS),
        ("text/plain; version=1.0.0; escaping=allow-utf-8", OLDER),
        ("", OLDER),
        (";;=,,", OLDER),
    ],
)
def test_whatever_is_accepted_one_of_two_forms_is_served(accept: str, form: str) -> None:
    assert form_of(accept) == form
    text, content_type = expose(Reading(success={"topics": True}), None, form)
    assert b'inturn_scrape_success{part="topics"} 1.0' in text
    assert text.endswith(b"# EOF\n") == (form == OPENMETRICS)
    assert content_type.startswith(form or "text/plain; version=0.0.4")


@pytest.mark.parametrize("version", ["latest", "1.x", "9" * 5000])
def test_a_version_that_is_no_number_is_no_fault(version: str) -> None:
    for kind in ("application/openmetrics-text", "text/plain"):
        assert form_of(f"{kind}; version={version}") in {OPENMETRICS, OLDER}


def test_a_database_that_does_not_answer_keeps_no_scrape_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the attempt to connect has ended: Prometheus would not wait for that."""
    monkeypatch.setattr("inturn.applier.metrics.reading.SCRAPE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = make_conninfo(host="127.0.0.1", port=silent.getsockname()[1], connect_timeout=3600)
        reader = Reader(functools.partial(connect, dsn), parts("inturn"))
        for _ in range(2):
            assert reader.read().success == {"server": False, "topics": False}
        client, _ = silent.accept()
        silent.setblocking(False)
        with client, pytest.raises(BlockingIOError):
            silent.accept()  # the second scrape has joined the first attempt


def test_a_scrape_whose_connection_is_swallowed_does_not_keep_the_next_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inturn.applier.metrics.reading.SCRAPE_SECONDS", 5.0)
    with Proxy(database.server) as proxy:
        swallow = [proxy.swallow]

        def connected() -> psycopg.Connection[Any]:
            connection = connect(proxy.dsn(database.name, APPLIER))
            if swallow:
                swallow.pop()()
            return connection

        reader = Reader(connected, parts("inturn"))
        assert reader.read().success == {"server": False, "topics": False}
        threads = [thread for thread in threading.enumerate() if thread.name == "inturn-scrape"]
        for thread in threads:
            thread.join(30)
        assert reader.read().success == {"server": True, "topics": True}
