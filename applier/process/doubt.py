"""Doubt: processes of this host that are gone, which the database has not noticed yet."""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import Any

import psycopg

from inturn.applier import calls
from inturn.applier.calls.appliers import LeftSession
from inturn.applier.process.pids import is_gone
from inturn.schema.pooling import is_pooled

log = logging.getLogger("inturn.applier")

#: No longer than that: a session whose client is gone ends when it has something to say or to hear.
MOST_SECONDS = 600.0

#: How long a start waits for the database to notice it.
NOTICED_SECONDS, _LOOK_SECONDS = 1.0, 0.02

#: The appliers that this process has announced: another one of its number may have been before it, as in a
#: container that was started again.
_announced: set[str] = set()


class Doubt:
    """The doubt of one process: the sessions of a process that is gone keep their keys as long as they exist.

    What the process died of is among them, so the next keys of its topics are taken alone until the session
    is gone, and the first ones after that. Found once, at the start. Another host may have the name of this
    one: its processes seem to be gone, until they announce themselves again.
    """

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._host = socket.gethostname()
        self._left: list[LeftSession] = []
        self._gone: list[LeftSession] = []
        self._found_at = 0.0

    def find(self, connection: psycopg.Connection[Any]) -> None:
        """Find processes of this host that are gone although their sessions still exist.

        Raises:
            psycopg.Error: the connection or the database failed.
        """
        if is_pooled(connection):
            return  # there no number names a session
        self._left = [each for each in self._sessions(connection) if _is_gone(each)]
        self._found_at = time.monotonic()
        # Most are noticed at once: those that wait for their client.
        while self._left and time.monotonic() - self._found_at < NOTICED_SECONDS:
            time.sleep(_LOOK_SECONDS)
            self.look(connection)
        # Of those the registry tells.
        self._gone = []

    def look(self, connection: psycopg.Connection[Any]) -> None:
        """Look which of those sessions still exist.

        Raises:
            psycopg.Error: the connection or the database failed.
        """
        if not self._left:
            return
        backends = [each.backend_pid for each in self._left]
        starts = [each.backend_start for each in self._left]
        there = calls.session.which_are_there(backends, starts).on(connection)
        seen = {(each.backend_pid, each.backend_start): each.seen_at for each in self._sessions(connection)}
        doubted = []
        for each in self._left:
            if seen.get((each.backend_pid, each.backend_start), each.seen_at) == each.seen_at:
                doubted.append(each)
            else:
                log.warning(
                    "applier %s is alive, though no process of this host is: another host or container is"
                    " called %s too. Give each a name of its own",
                    each.applier,
                    self._host,
                )
        is_over = time.monotonic() - self._found_at > MOST_SECONDS
        self._gone += [each for each in doubted if is_over or each.backend_pid not in there]
        self._left = [each for each in doubted if not is_over and each.backend_pid in there]

    def is_about(self, topic: str) -> bool:
        """Return whether a session that served a topic still exists."""
        return any(topic in each.topics for each in self._left)

    def was_about(self, topic: str) -> bool:
        """Return whether one was, after the start."""
        return any(topic in each.topics for each in self._gone)

    def _sessions(self, connection: psycopg.Connection[Any]) -> list[LeftSession]:
        return calls.appliers.list_sessions(self._schema, self._host).on(connection)


def note_announced(applier_id: str) -> None:
    """Note that an applier is one of this very process."""
    _announced.add(applier_id)


def _is_gone(session: LeftSession) -> bool:
    if session.pid == os.getpid():
        return session.applier not in _announced
    return is_gone(session.pid, session.seconds)
