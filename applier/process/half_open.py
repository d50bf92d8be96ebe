"""Half-open connections: found and given up, where what is sent no longer arrives.

What is between a process and its server may take everything, deliver nothing, and acknowledge it all the
same: then neither the kernel's probes nor tcp_user_timeout tell. So about a connection that has waited long
for an answer its server is asked, on a new connection: where the session is not at work, none will come.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import psycopg
from psycopg.abc import RV, PQGen

from inturn.applier import calls
from inturn.applier.process.threads import NoThread, start_thread
from inturn.applier.stop import Stop
from inturn.schema.errors import InturnError
from inturn.schema.pooling import is_pooled

log = logging.getLogger("inturn.applier")

#: After how many seconds of waiting for an answer the server is asked about a connection.
ANSWER_SECONDS = 10.0
#: How often; what was found is found again before anything is done: an answer may be on its way.
LOOK_SECONDS = 2.0
#: One look that takes longer, because its own connection hangs, is left behind.
_ONE_LOOK_SECONDS = 30.0
_TERMINATE_MILLISECONDS = 5000


class TimedConnection(psycopg.Connection[Any]):
    """A connection that tells since when it has waited for its server.

    Attributes:
        waiting_since: as time.monotonic() counts; None: it does not wait.
        server: the run of the server that it is to; see calls.session.server.
    """

    waiting_since: float | None = None
    server: str | None = None

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        self.waiting_since = time.monotonic()
        try:
            return super().wait(gen, *args, **kwargs)
        finally:
            self.waiting_since = None


class AsyncTimedConnection(psycopg.AsyncConnection[Any]):
    """The same, of an event loop."""

    waiting_since: float | None = None
    server: str | None = None

    async def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        self.waiting_since = time.monotonic()
        try:
            return await super().wait(gen, *args, **kwargs)
        finally:
            self.waiting_since = None


Timed: TypeAlias = TimedConnection | AsyncTimedConnection


class HalfOpen:
    """Finds the half-open connections of one process. A thread runs `run`."""

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        connections: Callable[[], Sequence[Timed]],
        stop: Stop,
    ) -> None:
        """Make one.

        Args:
            connect: gives a new connection in autocommit.
            connections: gives those that are open in the process.
        """
        self._connect = connect
        self._connections = connections
        self._stop = stop
        #: What was found at the last look, and since when it waited.
        self._found: dict[Timed, float] = {}

    def run(self) -> None:
        """Look until a stop, and then until no connection is left: it waits for what is in hand."""
        while True:
            time.sleep(LOOK_SECONDS)
            connections = self._connections()
            if self._stop.requested and not connections:
                return
            waiting = {connection: since for connection in connections if (since := _waits_long(connection))}
            if not waiting:
                self._found = {}
                continue
            # In a thread of its own: the connection that asks may be the next one to hang.
            with suppress(NoThread):  # there may be one at the next look
                look = start_thread(functools.partial(self._look, waiting), "inturn-half-open-look")
                look.join(_ONE_LOOK_SECONDS)

    def _look(self, waiting: dict[Timed, float]) -> None:
        try:
            with self._connect() as asking:
                idle = {
                    connection: since
                    for connection, since in waiting.items()
                    if calls.session.is_idle(connection.info.backend_pid).on(asking)
                }
                for connection, since in idle.items():
                    if self._found.get(connection) == since == connection.waiting_since:
                        _give_up(connection, asking)
            self._found = idle
        except (psycopg.Error, InturnError) as error:
            log.info("cannot ask about a connection that does not answer: %s", error)


def _waits_long(connection: Timed) -> float | None:
    """Return since when a connection has waited, if that is long, and its server can be asked about it."""
    since = connection.waiting_since
    # Through a pooler no number names the session.
    if since is None or time.monotonic() - since < ANSWER_SECONDS or is_pooled(connection):
        return None
    return since


def _give_up(connection: Timed, asking: psycopg.Connection[Any]) -> None:
    """End a connection's session, and tell whoever waits for its answer that it is lost."""
    try:
        # Its tickets are free once it has ended.
        pid = connection.info.backend_pid
        calls.session.terminate(pid, connection.server, _TERMINATE_MILLISECONDS).on(asking)
    finally:
        hang_up(connection)
    log.warning("a connection is lost: its server has answered, or never heard the question")


def hang_up(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Cut a connection, from another thread than the one that uses it."""
    with (
        suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as ours,
    ):
        ours.shutdown(socket.SHUT_RDWR)
