"""The sizes of a load of so many commands a second that is pruned, minute by minute, table by table."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from support.database import Database

from bench.callers import append_script, at_call
from bench.ground import Ground
from bench.kinds import APPLICATION, KINDS
from bench.retention import pruning
from bench.section import Section, rate

_TABLES = ("command_log", "turn", "ticket")
_KEYS, _CALLERS, _RATE = 1_500, 4, 1_000.0
_SIZES = """
    SELECT c.relname::text, pg_table_size(c.oid) / 1e6, pg_indexes_size(c.oid) / 1e6, s.autovacuum_count
    FROM pg_class c JOIN pg_stat_all_tables s ON s.relid = c.oid
    WHERE c.relnamespace = 'inturn'::regnamespace AND c.relkind = 'r'
"""


def measure(ground: Ground) -> Section:
    """Run the load, and look at the sizes after each of some equal times."""
    seconds, times = ground.size((60.0, 8), (3.0, 4))
    kept = seconds / 2
    tables = [heading for name in _TABLES for heading in (f"{name}, MB", "indexes, MB")]
    section = Section(
        f"A pruned load, every {seconds:g} seconds",
        ["after", "applied/s", *tables, "all tables, MB", "autovacuums"],
        notes=[
            f"{_CALLERS} callers over {_KEYS:,} keys, {_RATE:,.0f} commands a second if the machine can.",
            f"Commands are kept for {kept:g} seconds, pruned {kept / 4:g} seconds after each prune,",
            f"and autovacuum looks every {kept:g} seconds: it counts those of the three tables.",
        ],
    )
    with ground.database() as database, contextlib.ExitStack() as stack:
        stack.enter_context(_autovacuum_every(ground, kept))
        database.execute(APPLICATION)
        kind = KINDS["call"](database)
        stack.enter_context(kind.at_work())
        script, at_most = append_script(kind.topic, _KEYS), seconds * times + 60
        stack.enter_context(at_call(database, script, clients=_CALLERS, seconds=at_most, each_second=_RATE))
        database.execute("UPDATE inturn.topic SET retain = %s WHERE name = %s", [f"{kept} s", kind.topic])
        stack.enter_context(pruning(database, kept / 4))
        for number in range(1, times + 1):
            before, began_at = kind.applied(), time.monotonic()
            time.sleep(seconds)
            applied = rate((kind.applied() - before) / (time.monotonic() - began_at))
            section.rows.append([f"{number * seconds:g} s", applied, *_sizes(database)])
            ground.say(" ".join(section.rows[-1]))
    return section


def _sizes(database: Database) -> list[str]:
    """Return the megabytes of the tables and of their indexes, of all tables, and how many autovacuums."""
    found = {name: numbers for name, *numbers in database.execute(_SIZES)}
    cells = [f"{megabytes:.1f}" for name in _TABLES for megabytes in found[name][:2]]
    everything = sum(heap + indexes for heap, indexes, _ in found.values())
    return [*cells, f"{everything:.1f}", str(sum(found[name][2] for name in _TABLES))]


@contextlib.contextmanager
def _autovacuum_every(ground: Ground, seconds: float) -> Iterator[None]:
    ground.server.administer(f"ALTER SYSTEM SET autovacuum_naptime = '{max(seconds, 1):g}s'")
    ground.server.administer("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        ground.server.administer("ALTER SYSTEM RESET autovacuum_naptime")
        ground.server.administer("SELECT pg_reload_conf()")
