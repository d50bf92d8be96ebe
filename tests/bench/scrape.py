"""Scrape: what a scrape of metrics costs beside a million keys."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import psycopg
from support.database import Database

from bench import cpu
from bench.ground import Ground
from bench.planting import plant
from bench.section import Section
from inturn.applier.metrics.exposition import OPENMETRICS, expose
from inturn.applier.metrics.reading import Reader, parts, read
from inturn.applier.metrics.tallies import Snapshot
from inturn.schema.connection import connect

_SCRAPES, _TOPICS = 50, 5


def measure(ground: Ground) -> Section:
    few, many, scrapes = ground.size((1_000, 1_000_000, _SCRAPES), (100, 10_000, 3))
    section = Section(
        "A scrape of metrics",
        ["beside", "ms, median", "ms, most", "server's CPU, ms", "its queries, ms"],
        notes=[
            f"Keys of {_TOPICS} topics, each with a command.",
            f"Of {scrapes} scrapes, one after the other, each with a connection of its own, as processes do.",
            "Its queries: the same on a connection that stays, the median of as many.",
        ],
    )
    for case, held in ((few, 0), (many, 0), (many, many // 5)):
        with ground.database() as database:
            topics = [f"t{number}" for number in range(_TOPICS)]
            for topic in topics:
                database.execute("SELECT inturn.create_topic(%s)", [topic])
                kinds = {"ready": (case - held) // _TOPICS, "held": held // _TOPICS}
                plant(database, topic, **{kind: count for kind, count in kinds.items() if count})
            name = f"{case:,} keys" + (f", {held:,} of them held" if held else " that are ready")
            section.rows.append([name, *_row(database, scrapes)])
            ground.say(" ".join(section.rows[-1]))
    return section


def _row(database: Database, scrapes: int) -> list[str]:
    connected = functools.partial(
        connect, database.applier_dsn, prepare_threshold=None, application_name="inturn metrics"
    )
    reader = Reader(connected, parts("inturn"))
    times: list[float] = []
    for number in range(scrapes + 1):
        if number == 1:  # the first one fills caches
            cpu_from = cpu.seconds(database.server)
        started_at = time.monotonic()
        reading = reader.read()
        text, _ = expose(reading, Snapshot(), OPENMETRICS)
        seconds = time.monotonic() - started_at
        assert all(reading.success.values()), reading.success
        assert b"inturn_keys" in text
        if number:
            times.append(seconds)
    used = cpu.seconds(database.server) - cpu_from
    figures = (statistics.median(times), max(times), used / scrapes, _queries(connected, scrapes))
    return [f"{figure * 1000:.1f}" for figure in figures]


def _queries(connected: Callable[[], psycopg.Connection[Any]], scrapes: int) -> float:
    with connected() as connection:
        read(connection, parts("inturn"))
        return statistics.median(read(connection, parts("inturn")).seconds for _ in range(scrapes))
