"""Connections: how a process connects to its database, always alike."""

from __future__ import annotations

import logging
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any, cast

import psycopg

from inturn.applier import calls
from inturn.applier.process.half_open import AsyncTimedConnection, HalfOpen, Timed, TimedConnection
from inturn.applier.process.threads import start_thread
from inturn.applier.stop import Stop
from inturn.schema.connection import connect, connect_async

log = logging.getLogger("inturn.applier")

_NAME = "inturn apply"


@dataclass(frozen=True, slots=True)
class Connections:
    """Makes connections in autocommit, with isolation level READ COMMITTED.

    Attributes:
        prepare_threshold: as psycopg has it; None: the driver prepares nothing.
    """

    dsn: str
    prepare_threshold: int | None
    _made: weakref.WeakSet[Timed] = field(default_factory=weakref.WeakSet, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    def connect(self) -> psycopg.Connection[Any]:
        made = connect(
            self.dsn,
            kind=TimedConnection,
            prepare_threshold=self.prepare_threshold,
            application_name=_NAME,
            for_handlers=True,
        )
        try:
            self._note(made, calls.session.server().on(made))
        except BaseException:
            made.close()
            raise
        return made

    async def connect_async(self) -> psycopg.AsyncConnection[Any]:
        made = await connect_async(
            self.dsn,
            kind=AsyncTimedConnection,
            prepare_threshold=self.prepare_threshold,
            application_name=_NAME,
        )
        try:
            self._note(made, await calls.session.server().on_async(made))
        except BaseException:
            await made.close()
            raise
        return made

    def open(self) -> list[Timed]:
        """Return those that are open."""
        with self._lock:
            return [connection for connection in self._made if not connection.closed]

    def watch(self, stop: Stop) -> None:
        """Start a thread that finds and gives up those that are half-open, until a stop."""
        half_open = HalfOpen(self.connect, self.open, stop)
        start_thread(half_open.run, "inturn-half-open")

    def _note(self, made: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], server: str) -> None:
        timed = cast(Timed, made)
        timed.server = server
        with self._lock:
            self._made.add(timed)


class FirstConnection:
    """The one on which a process announces its first worker, which goes on with it.

    Were it closed before that has one of its own, whoever starts meanwhile would take the process for dead.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._lock = threading.Lock()
        self._made: psycopg.Connection[Any] | None = None
        self._is_due = True

    def __enter__(self) -> psycopg.Connection[Any]:
        """Make it, for a block that closes it when it fails.

        Raises:
            RuntimeError: it was made before: by that, two workers would have one name.
            psycopg.Error: the database cannot be reached or refuses.
        """
        if not self._is_due:
            raise RuntimeError("this fleet was started before: make another one")
        self._made = self._connections.connect()
        return self._made

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_due = kind is not None
        if self._is_due:
            self.close()

    def take(self) -> psycopg.Connection[Any]:
        """Return it, to whoever asks first; to others, a new one."""
        with self._lock:
            made, self._made = self._made, None
        return self._connections.connect() if made is None else made

    def close(self) -> None:
        """Close it, if nobody has taken it."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.close()


def warn_superuser(connection: psycopg.Connection[Any]) -> None:
    """Log a warning when a connection applies as a superuser: whatever handlers do, they do as one.

    Raises:
        psycopg.Error: the connection or the database failed.
    """
    if user := calls.session.superuser().on(connection):
        log.warning(
            "applying as %s, a superuser: targets and handlers can do anything on its server."
            " Apply with a login of its own that has inturn_applier",
            user,
        )
