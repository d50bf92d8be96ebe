"""Whether there is a pooler on the way, and in which mode it is."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn

from inturn.cli.doctor.finding import Facts, Finding
from inturn.schema.connection import complete

#: How long a second connection is waited for. In session mode none may be free.
SECONDS = 2.0
_SAYS = {
    True: "in transaction mode: LISTEN does not work, and sleeping appliers find new commands within a second"
    " instead of at once",
    False: "in session mode, as far as can be told: each connection keeps one of its sessions for as long as"
    " it is open, and inturn does not prepare statements",
    None: "in a mode that cannot be told now. In transaction mode LISTEN does not work, and sleeping appliers"
    " find new commands within a second instead of at once",
}


def pooler(facts: Facts) -> Iterator[Finding]:
    backends = {_backend(facts) for _ in range(3)}
    if backends == {facts.connection.info.backend_pid}:
        return
    shares: bool | None = len(backends) > 1
    if not shares:
        other = _of_another(facts)
        shares = None if other is None else bool(other & backends) or {_backend(facts)} != backends
    yield Finding(
        "warning",
        f"this connection goes through a pooler {_SAYS[shares]}",
        "Let appliers connect to the server directly; callers may stay",
    )


def _backend(facts: Facts) -> int:
    return int(facts.rows("SELECT pg_backend_pid() AS pid")[0]["pid"])


def _of_another(facts: Facts) -> set[int] | None:
    """Return the backends that another connection gets while ours is idle; None: none within the time.

    In session mode ours keeps its own. In transaction mode a pooler gives away the one that was used last,
    or, where its sessions take turns, ours gets another one each time.
    """
    info, ends_at = facts.connection.info, time.monotonic() + SECONDS
    try:
        other = psycopg.connect(
            make_conninfo(complete(info.dsn), password=info.password), autocommit=True, prepare_threshold=None
        )
    except psycopg.Error:
        return None
    try:
        backends = {_ask(other.pgconn, ends_at) for _ in range(3)}
    except psycopg.Error:
        return None
    finally:
        other.close()
    return {each for each in backends if each is not None} if None not in backends else None


def _ask(connection: PGconn, ends_at: float) -> int | None:
    """Return the backend that answers; None: none does in time. psycopg would wait for it to cancel."""
    if connection.transaction_status != TransactionStatus.IDLE:
        return None
    connection.send_query(b"SELECT pg_catalog.pg_backend_pid()")
    connection.flush()
    while connection.is_busy():
        left = ends_at - time.monotonic()
        if left <= 0 or not select.select([connection.socket], [], [], left)[0]:
            return None
        connection.consume_input()
    found = None
    while (result := connection.get_result()) is not None:
        found = result.get_value(0, 0) or found
    return None if found is None else int(found)
