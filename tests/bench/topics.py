"""Topics: what ten thousand idle ones cost an applier that serves them all, beside one that is busy."""

from __future__ import annotations

import time

from support.database import Database

from bench.ground import Ground, at_work
from bench.probe import Probe, percentile
from bench.section import Section, ratio

_IDLE_TOPICS = (
    "SELECT count(inturn.create_topic('idle-' || i, 'sql:app.apply_order')) FROM generate_series(1, %s) i"
)


def measure(ground: Ground) -> Section:
    section = Section(
        "Idle topics beside a busy one",
        ["topics", "transactions/s, idle", "p50, ms", "p95, ms", "p50 to few topics"],
        notes=[
            "One worker serves all topics. Times from commit to the start of a handler in Python.",
            "Transactions of its database while nothing is appended, by pg_stat_database.",
        ],
    )
    few: float | None = None
    for count in (0, ground.size(10_000, 300)):
        with ground.database() as database:
            topics = 2 + int(database.value(_IDLE_TOPICS, [count]))
            probe = Probe(database, "python")
            with at_work(database, probe.applier):
                time.sleep(ground.size(3.0, 1.0))
                idle = _transactions(database, ground.size(15.0, 2.0))
                times = probe.milliseconds(keys=10, count=ground.size(100, 10), pause=0.1)
        p50, p95 = percentile(times, 50), percentile(times, 95)
        section.rows.append(
            [f"{topics:,}", f"{idle:.1f}", f"{p50:.1f}", f"{p95:.1f}", ratio(p50, few) if few else ""]
        )
        few = few or p50
        ground.say(f"{topics:,} topics: {idle:.1f} transactions/s, p50 {p50:.1f} ms, p95 {p95:.1f} ms")
    return section


def _transactions(database: Database, seconds: float) -> float:
    """Return the transactions a second in the database, asked from another one."""
    query = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s"
    with database.server.connect() as outside:

        def count() -> int:
            row = outside.execute(query, [database.name]).fetchone()
            return int(str(row[0])) if row else 0

        begun, started_at = count(), time.monotonic()
        time.sleep(seconds)
        return (count() - begun) / (time.monotonic() - started_at)
