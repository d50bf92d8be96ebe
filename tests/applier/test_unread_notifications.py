"""A process that was stopped reads no notifications: the server ends the session that cannot send them."""

from __future__ import annotations

import threading
from functools import partial

import pytest
from psycopg.conninfo import make_conninfo
from support.database import Database, until

from inturn.applier.process.listener import Listener
from inturn.applier.stop import Stop
from inturn.schema.connection import connect

_SESSION = """
    SELECT wait_event, backend_xmin IS NOT NULL FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'deaf'"""


class _Deaf:
    """What a listener rings for, which does not go on until it is told to, as a process that was stopped."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.listened = 0

    def ring_all(self) -> None:
        self.listened += 1

    def ring(self, topic: str | None = None) -> None:
        self.goes_on.wait(60)


@pytest.mark.needs_session("a pooler reads for its clients")
def test_what_a_stopped_process_does_not_read_keeps_no_dead_rows(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that waits to send them has a snapshot meanwhile, and keeps the server's queue of them."""
    monkeypatch.setattr("inturn.applier.process.listener._UNREAD_MILLISECONDS", 500)
    dsn = make_conninfo(database.applier_dsn, host="127.0.0.1", application_name="deaf")
    deaf, stop = _Deaf(), Stop()
    listener = Listener(partial(connect, dsn), schema="inturn", stop=stop, bell=deaf)
    thread = threading.Thread(target=listener.run, daemon=True)
    thread.start()

    def is_full() -> bool:
        """Send more, until the systems at both ends take no more of it; say whether that is so."""
        database.execute(
            "SELECT pg_notify('inturn.ready', repeat('x', 7000) || n) FROM generate_series(1, 1000) n"
        )
        return database.execute(_SESSION) in ([("ClientWrite", True)], [])

    try:
        until(lambda: deaf.listened, "it listens")
        until(is_full, "it cannot send them")
        until(lambda: database.execute(_SESSION) == [], "the end of its session")
    finally:
        stop.request()
        deaf.goes_on.set()
        thread.join(60)
