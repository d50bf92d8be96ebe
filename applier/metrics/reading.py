"""Reading: what the database says to a scrape, within a bounded time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from inturn.applier import calls
from inturn.applier.calls.call import Call
from inturn.applier.calls.metrics import Sample
from inturn.applier.failure import on_one_line
from inturn.applier.process.half_open import hang_up
from inturn.schema.errors import InturnError

log = logging.getLogger("inturn.applier")

#: How long the database may take for each part of what it says to a scrape, in seconds.
PART_SECONDS = 4.0
#: How long a scrape waits for the whole of it, whatever database and network do: Prometheus gives it 10.
SCRAPE_SECONDS = 9.0


@dataclass(slots=True)
class Reading:
    """What a scrape has found.

    Attributes:
        success: whether each part could be read.
        seconds: how long the database took.
    """

    samples: list[Sample] = field(default_factory=list)
    success: dict[str, bool] = field(default_factory=dict)
    seconds: float = 0.0


def parts(schema: str, keys: int = 0) -> dict[str, Call[list[Sample]]]:
    """Return what there is to read. keys: how many of the worst keys are named."""
    found = {"server": calls.metrics.server_metrics(schema), "topics": calls.metrics.topic_metrics(schema)}
    return found | ({"keys": calls.metrics.worst_keys(schema, keys)} if keys else {})


def read(connection: psycopg.Connection[Any], wanted: dict[str, Call[list[Sample]]]) -> Reading:
    """Read the parts, each in a transaction of its own.

    Raises:
        psycopg.Error: the database failed or refused.
    """
    reading, started_at = Reading(), time.monotonic()
    for name, call in wanted.items():
        reading.samples += _read(connection, call)
        reading.success[name] = True
    reading.seconds = time.monotonic() - started_at
    return reading


class Reader:
    """Reads the parts for scrapes, one at a time, each on a connection of its own, in a bounded time.

    A part that cannot be read is left out, and that is said: also where the database's machine is silent, or
    something in between acknowledges what it does not deliver.

    Args:
        connect: gives the connection, in autocommit.
        wanted: as `parts` gives them.
    """

    def __init__(
        self, connect: Callable[[], psycopg.Connection[Any]], wanted: dict[str, Call[list[Sample]]]
    ) -> None:
        self._connect = connect
        self._wanted = wanted
        self._under_way: _UnderWay | None = None

    def read(self) -> Reading:
        """Return what could be read. Not for two threads at a time."""
        under_way = self._under_way
        if under_way is None or not under_way.is_alive():
            under_way = _UnderWay(self._connect, self._wanted)
            under_way.start()
            self._under_way = under_way
        under_way.join(SCRAPE_SECONDS)
        if not under_way.is_alive():
            return under_way.reading
        under_way.hang_up()
        log.warning("metrics could not be read: the database has not answered for %g s", SCRAPE_SECONDS)
        return Reading(success=dict.fromkeys(self._wanted, False), seconds=SCRAPE_SECONDS)


class _UnderWay(threading.Thread):
    """One reading. What hangs in a connect is left behind, and joined by the next scrape until it ends."""

    def __init__(
        self, connect: Callable[[], psycopg.Connection[Any]], wanted: dict[str, Call[list[Sample]]]
    ) -> None:
        super().__init__(name="inturn-scrape", daemon=True)
        self.reading = Reading(success=dict.fromkeys(wanted, False))
        self._connect = connect
        self._wanted = wanted
        self._open: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()

    def run(self) -> None:
        started_at = time.monotonic()
        try:
            connection = self._connect()
            try:
                self._open = connection
                self._read_parts(connection)
            finally:
                with self._lock:  # from here on its socket's number may be another's
                    self._open = None
                connection.close()
        except (psycopg.Error, InturnError) as error:
            log.warning("metrics could not be read: %s", on_one_line(error))
        self.reading.seconds = time.monotonic() - started_at

    def hang_up(self) -> None:
        with self._lock:
            if self._open is not None:
                hang_up(self._open)

    def _read_parts(self, connection: psycopg.Connection[Any]) -> None:
        for name, call in self._wanted.items():
            try:
                self.reading.samples += _read(connection, call)
                self.reading.success[name] = True
            except psycopg.Error as error:
                log.warning("metrics of %s could not be read: %s", name, on_one_line(error))


def _read(connection: psycopg.Connection[Any], call: Call[list[Sample]]) -> list[Sample]:
    with connection.transaction():
        calls.metrics.limit(PART_SECONDS).on(connection)
        return call.on(connection)
