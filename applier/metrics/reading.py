"""Reading: what the database says to a scrape, within a bounded time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from inturn.applier import calls
from inturn.applier.calls.call import Call
from inturn.applier.calls.metrics import Sample
from inturn.applier.failure import on_one_line

log = logging.getLogger("inturn.applier")

#: How long a scrape waits for each part of what the database says, in seconds: Prometheus gives it 10.
PART_SECONDS = 4.0


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


def read_what_can_be(
    connect: Callable[[], psycopg.Connection[Any]], wanted: dict[str, Call[list[Sample]]]
) -> Reading:
    """Read the parts on a connection of their own; a part that cannot be read is left out, and that said."""
    reading, started_at = Reading(success=dict.fromkeys(wanted, False)), time.monotonic()
    try:
        with connect() as connection:
            for name, call in wanted.items():
                try:
                    reading.samples += _read(connection, call)
                    reading.success[name] = True
                except psycopg.Error as error:
                    log.warning("metrics of %s could not be read: %s", name, on_one_line(error))
    except psycopg.Error as error:
        log.warning("metrics could not be read: %s", on_one_line(error))
    reading.seconds = time.monotonic() - started_at
    return reading


def _read(connection: psycopg.Connection[Any], call: Call[list[Sample]]) -> list[Sample]:
    with connection.transaction():
        calls.metrics.limit(PART_SECONDS).on(connection)
        return call.on(connection)
