"""P5: the server gives up the sessions of clients that are gone, and the keys that they have in hand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.cut import cut_off
from support.database import Database, until
from support.roles import OWNER

from inturn.applier.process.connections import Connections
from inturn.applier.process.half_open import hang_up
from inturn.schema import connection as connections

pytestmark = pytest.mark.needs_session("a pooler is the client there, and looks after its own")

#: What each session does when it has a key in hand.
_DOES = {
    "idle in its transaction": "SELECT",
    "at work": "SELECT pg_sleep(600)",
    "waiting for a lock": "SELECT pg_advisory_xact_lock(1)",
}
_AT_IT = """
    SELECT count(*) FROM pg_stat_activity WHERE pid = ANY (%s)
    AND (wait_event IN ('PgSleep', 'advisory') OR state = 'idle in transaction' AND query = 'SELECT')"""
_THERE = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY (%s)"


@pytest.mark.parametrize(
    "end",
    # What the kernel does for a process that was killed.
    [pytest.param(hang_up, id="killed"), pytest.param(cut_off, id="cut off", marks=pytest.mark.slow)],
)
def test_p5_the_keys_of_a_client_that_is_gone_are_free_whatever_its_session_does(
    database: Database, end: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a process that was killed, or on a host that is cut off, where nobody answers the server."""
    monkeypatch.setattr(connections, "_PROBED", dict.fromkeys(connections._PROBED, "1"))  # for two seconds
    monkeypatch.setattr(connections, "_CHECKED", "50ms")
    database.execute("SELECT inturn.create_topic('t')")
    database.execute("SELECT inturn.append('t', key, 'do') FROM unnest(%s::text[]) key", [list(_DOES)])
    dsn = make_conninfo(database.applier_dsn, host="127.0.0.1")
    operator = database.connect(user=OWNER, autocommit=False)
    operator.execute("SELECT pg_advisory_xact_lock(1)")
    clients: list[psycopg.Connection[Any]] = []
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(len(_DOES)))
        for statement in _DOES.values():
            clients.append(Connections(dsn, None).connect())
            stack.callback(clients[-1].close)
            stack.callback(hang_up, clients[-1])  # which lets its thread go
            clients[-1].execute("BEGIN")
            assert clients[-1].execute("SELECT key FROM inturn.claim('t')").fetchone()
            threads.submit(clients[-1].execute, statement.encode())
        pids = [client.info.backend_pid for client in clients]
        until(lambda: database.value(_AT_IT, [pids]) == len(pids), "each at it")
        for client in clients:
            end(client)
        until(lambda: not database.value(_THERE, [pids]), "the end of their sessions")
        claimed = database.execute("SELECT key FROM inturn.claim('t', max_keys => 9)")
        assert {key for (key,) in claimed} == set(_DOES)
