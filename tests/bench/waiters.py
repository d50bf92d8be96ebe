"""What an applier's turns cost beside sessions that wait for other keys: its time on the processor."""

from __future__ import annotations

import statistics
from contextlib import ExitStack

from psycopg import sql
from support.database import Database
from support.roles import OWNER

from bench.cost import cpu_of
from bench.ground import Ground, fill
from bench.section import Section, ratio

#: Waits that are announced, and sessions that really listen: as many as a server of tests has room for.
_WAITS, _LISTENING = 1_000, 100


def measure(ground: Ground) -> Section:
    count = ground.size(10_000, 300)
    times = ground.size(7, 2)
    samples: dict[int, list[float]] = {0: [], _WAITS: []}
    with ground.database() as database:
        for number in range(times):
            for waits, found in samples.items():
                fill(database, "orders", count, 1, prefix=f"{number}-{waits}-")
                found.append(_drain(database, waits, _LISTENING if waits else 0) / count / 1000)
    section = Section(
        "Waiters for other keys",
        ["beside", "CPU of a turn, µs", "to none"],
        notes=[
            f"CALL inturn.apply() over {count:,} keys with a command each, medians of {times} times in turn.",
            f"Of the applier's backend, by /proc/PID/schedstat. {_LISTENING} of the waiters are sessions.",
        ],
    )
    none = statistics.median(samples[0])
    for waits, found in samples.items():
        each = statistics.median(found)
        section.rows.append([f"{waits:,} waiters", f"{each:,.1f}", ratio(each, none)])
        ground.say(f"{waits:,} waiters: {each:,.1f} µs")
    return section


def _drain(database: Database, waits: int, listening: int) -> int:
    """Apply everything beside so many waits, and return the nanoseconds of the applier's backend."""
    database.execute("TRUNCATE inturn.waiter")
    database.execute(
        "SELECT count(inturn.announce_wait('orders', 'waited' || n)) FROM generate_series(1, %s) n", [waits]
    )
    # Longer than a machine that is busy may take.
    database.execute("UPDATE inturn.waiter SET until = now() + interval '1 hour'")
    with ExitStack() as stack:
        for number in range(listening):
            waiter = stack.enter_context(database.connect(user=OWNER))
            row = waiter.execute("SELECT inturn._wait_channel('orders', %s)", [f"waited{number}"]).fetchone()
            waiter.execute(sql.SQL("LISTEN {}").format(sql.Identifier(row[0] if row else "")))
        applier = stack.enter_context(database.connect(user=OWNER))
        applier.execute("CALL inturn.apply()")
        return cpu_of(applier)
