"""The server of metrics goes on after a moment in which no thread could be started."""

from __future__ import annotations

import contextlib
import threading
import urllib.request
from collections.abc import Callable

import pytest

from inturn.applier.metrics.server import MOST_CLIENTS, MetricsServer


def _scrape(server: MetricsServer) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        return bytes(answer.read())


@pytest.mark.parametrize("refused", ["process_request_thread", "timer"])
def test_threads_that_cannot_be_started_take_no_slot_for_good(
    monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    server = MetricsServer("127.0.0.1", 0, lambda _accept: (b"up 1\n", "text/plain"))
    server.start()
    start: Callable[[threading.Thread], None] = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if isinstance(thread, threading.Timer) if refused == "timer" else refused in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading, "excepthook", lambda _args: None)
    try:
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", refuse)
            for _ in range(MOST_CLIENTS + 1):
                with contextlib.suppress(OSError):
                    _scrape(server)
        assert _scrape(server) == b"up 1\n"
    finally:
        server.close()
