"""Listener: hears that keys turned ready and rings for a worker. Without it, workers poll."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg

from inturn.applier import calls
from inturn.applier.failure import on_one_line
from inturn.applier.stop import Ringer, Stop
from inturn.schema.pooling import is_pooled

log = logging.getLogger("inturn.applier")

_CHECK_STOP_SECONDS = 0.25
_RECONNECT_SECONDS = 5.0
#: How often the server has to answer: a client that only listens does not notice a dead connection.
_PING_SECONDS = 5.0
#: How long what it has heard may wait to be read, in a process that was stopped, say. A session that cannot
#: send it to the end holds a snapshot meanwhile, for which nothing is vacuumed in the whole database.
_UNREAD_MILLISECONDS = 25_000


class Listener:
    """LISTENs on a connection of its own. `run` is what a thread runs."""

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection[Any]],
        *,
        schema: str,
        stop: Stop,
        bell: Ringer,
    ) -> None:
        self._connect = connect
        self._schema = schema
        self._stop = stop
        self._bell = bell

    def run(self) -> None:
        """Listen until stopped. A lost connection is made again; meanwhile the workers poll."""
        while not self._stop.requested:
            try:
                with self._connect() as connection:
                    if not is_pooled(connection):  # others use that session too
                        calls.session.end_unread(_UNREAD_MILLISECONDS).on(connection)
                    connection.execute(calls.appliers.listen(self._schema))
                    # What turned ready while nobody listened.
                    self._bell.ring_all()
                    self._hear(connection)
            except Exception as error:  # noqa: BLE001 - what it hears comes from anybody, and may be unreadable
                if not self._stop.requested:
                    with suppress(Exception):  # the log may be what fails
                        log.info("not listening, polling instead: %s", on_one_line(error))
                    self._stop.wait(_RECONNECT_SECONDS)

    def _hear(self, connection: psycopg.Connection[Any]) -> None:
        pinged_at = time.monotonic()
        while not self._stop.requested:
            for notify in connection.notifies(timeout=_CHECK_STOP_SECONDS):
                self._bell.ring(notify.payload)
            if time.monotonic() - pinged_at > _PING_SECONDS:
                connection.execute(calls.appliers.listen(self._schema))
                pinged_at = time.monotonic()
