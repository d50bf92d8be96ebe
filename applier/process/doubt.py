"""Doubt: processes of this host that are gone, of which the database has not noticed it."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import psycopg

from inturn.applier import calls
from inturn.applier.calls.appliers import LeftSession
from inturn.schema.pooling import is_pooled

#: No longer than that, should a number have come to belong to somebody else: a session whose client is gone
#: ends when it has something to say or to hear.
MOST_SECONDS = 600.0

#: How long a start waits for the database to notice it.
NOTICED_SECONDS, _LOOK_SECONDS = 1.0, 0.02

#: The appliers that this process has announced: another one of its number may have been before it, as in a
#: container that was started again.
_announced: set[str] = set()


class Doubt:
    """Of one process: a session of one that is gone has its keys in hand as long as it is there.

    What the process died of is among them, so the next keys of its topics are taken alone until the session
    is gone, and the first ones after that. Found once, at the start.
    """

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._left: list[LeftSession] = []
        self._found_at = 0.0
        #: The topics of those that were found, whether they are there still or not.
        self.topics: set[str] = set()

    def find(self, connection: psycopg.Connection[Any]) -> None:
        """Look which processes of this host are gone, but for their sessions.

        Raises:
            psycopg.Error: the connection or the database failed.
        """
        if is_pooled(connection):
            return  # there no number names a session
        found = calls.appliers.list_sessions(self._schema, socket.gethostname()).on(connection)
        self._left = [each for each in found if _is_gone(each)]
        self._found_at = time.monotonic()
        # Most are noticed at once: those that wait for their client.
        while self._left and time.monotonic() - self._found_at < NOTICED_SECONDS:
            time.sleep(_LOOK_SECONDS)
            self.look(connection)
        self.topics = {topic for each in self._left for topic in each.topics}

    def look(self, connection: psycopg.Connection[Any]) -> None:
        """Look which of those sessions are there still.

        Raises:
            psycopg.Error: the connection or the database failed.
        """
        if self._left and time.monotonic() - self._found_at > MOST_SECONDS:
            self._left = []
        if self._left:
            backends = [each.backend_pid for each in self._left]
            starts = [each.backend_start for each in self._left]
            there = calls.session.which_are_there(backends, starts).on(connection)
            self._left = [each for each in self._left if each.backend_pid in there]

    def is_about(self, topic: str) -> bool:
        """Return whether a session that served a topic is there still."""
        return any(topic in each.topics for each in self._left)


def note_announced(applier_id: str) -> None:
    """Note that an applier is one of this very process."""
    _announced.add(applier_id)


def _is_gone(session: LeftSession) -> bool:
    if session.pid == os.getpid():
        return session.applier not in _announced
    if os.name != "posix":
        return False
    try:
        os.kill(session.pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False  # somebody else's
    return False
