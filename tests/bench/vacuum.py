"""What autovacuum's scale factor is worth for each table: dead rows, sizes, and time on the processor.

Nothing is left to the clock. A run lives some nights: a day's commands are appended and applied, the oldest
day is pruned, and then each table is looked at as autovacuum looks at it: it is vacuumed if its dead rows are
more than autovacuum_vacuum_threshold and the scale factor's part of its rows.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from datetime import timedelta

from psycopg import sql
from support.database import Database
from support.roles import OWNER

from bench.cost import cpu_of
from bench.ground import Ground
from bench.section import Section, ratio

#: PostgreSQL's default first.
SCALES = (0.2, 0.1, 0.05, 0.02, 0.01)
TABLES = ("command_log", "turn", "key_sequence", "ticket")
#: For how many days commands are kept, and how many pass after the first of them is pruned.
_KEPT, _PRUNED = 30, 60
_THRESHOLD = 50
#: Held keys, of another topic: their tickets lie beside those that come and go.
_PARKED = """
    INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at, marked)
    SELECT 'python', 'held' || i, 5, 0, 'infinity', true FROM generate_series(1, %s) i
"""


@dataclass(slots=True)
class _Table:
    """What became of a table in a run: for each night its part of dead rows, and its bytes."""

    dead: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    packed: int = 0
    vacuums: int = 0
    cpu: int = 0


@dataclass(slots=True)
class _Run:
    tables: dict[str, _Table] = field(default_factory=lambda: {name: _Table() for name in TABLES})
    cpu: int = 0


def measure(ground: Ground) -> Section:
    a_day, keys, parked = ground.size((1_000, 500, 5_000), (100, 50, 500))
    section = Section(
        "When autovacuum comes by",
        [
            "table",
            "scale factor",
            "vacuums",
            "dead rows, mean",
            "most",
            "size to packed",
            "CPU to the work's",
        ],
        notes=[
            f"{_KEPT + _PRUNED} days of {a_day:,} commands over {keys:,} keys, kept for {_KEPT} days.",
            f"Every night the oldest day is pruned. {parked:,} keys of another topic are held.",
            "After that, a table is vacuumed that has more dead rows than 50 and this part of its rows.",
            "dead rows: before a look, as a part of the live ones.",
            "size to packed: with its indexes, the mean of the last third, to that after VACUUM FULL.",
            "CPU to the work's: of its vacuums, to that of appending, applying and pruning.",
        ],
    )
    base = 0
    for scale in SCALES:
        found = _live(ground, scale, a_day, keys, parked)
        base = base or found.cpu
        for name, table in found.tables.items():
            cells = [f"{100 * value:.1f} %" for value in (statistics.mean(table.dead), max(table.dead))]
            last = statistics.mean(table.sizes[-len(table.sizes) // 3 :])
            cells += [ratio(last, table.packed), f"{table.cpu / found.cpu:.4f}"]
            section.rows.append([name, f"{scale:g}", f"{table.vacuums}", *cells])
            ground.say(" ".join(section.rows[-1]))
        ground.say(f"CPU of the work at {scale:g}, to that at {SCALES[0]:g}: {ratio(found.cpu, base)}")
    section.rows.sort(key=lambda row: TABLES.index(row[0]))
    return section


def _live(ground: Ground, scale: float, a_day: int, keys: int, parked: int) -> _Run:
    run = _Run()
    with ground.database() as database:
        database.execute(_PARKED, [parked])
        for name in TABLES:
            database.execute(f"ALTER TABLE inturn.{name} SET (autovacuum_enabled = off)")
            database.execute(f"VACUUM (ANALYZE) inturn.{name}")
        ends: list[float] = []
        for day in range(_KEPT + _PRUNED):
            ends.append(time.time())
            oldest = timedelta(seconds=time.time() - ends[day - _KEPT]) if day >= _KEPT else None
            run.cpu += _work(database, a_day, keys, oldest)
            for name, table in run.tables.items():
                _look(database, name, table, scale, counts=oldest is not None)
        for name, table in run.tables.items():
            database.execute(f"VACUUM FULL inturn.{name}")
            table.packed = _size(database, name)
    return run


def _work(database: Database, a_day: int, keys: int, oldest: timedelta | None) -> int:
    """Do a day's work, and prune what is older; return the nanoseconds of the backend."""
    with database.connect(user=OWNER) as connection:
        connection.execute(
            "SELECT count(inturn.append('orders', 'k' || (1 + random() * (%s - 1))::integer, 'insert',"
            " '{\"amount\": 1}')) FROM generate_series(1, %s)",
            [keys, a_day],
        )
        connection.execute("CALL inturn.apply(ARRAY['orders'])")
        if oldest is not None:
            connection.execute("CALL inturn.prune('orders', %s)", [oldest])
        # So that what it did is known when it is looked at.
        connection.execute("SELECT pg_stat_force_next_flush()")
        return cpu_of(connection)


def _look(database: Database, name: str, table: _Table, scale: float, *, counts: bool) -> None:
    """Look at a table as autovacuum does; note what there is, once days are pruned."""
    dead, live = _dead_and_live(database, name)
    if counts:
        table.dead.append(dead / max(live, 1))
        table.sizes.append(_size(database, name))
    if dead <= _THRESHOLD + scale * live:
        return
    with database.connect(user=OWNER) as connection:
        before = cpu_of(connection)
        connection.execute(sql.SQL("VACUUM {}").format(sql.Identifier("inturn", name)))
        if counts:
            table.vacuums += 1
            table.cpu += cpu_of(connection) - before


def _dead_and_live(database: Database, name: str) -> tuple[int, int]:
    query = "SELECT n_dead_tup, n_live_tup FROM pg_stat_user_tables WHERE relid = %s::regclass"
    return database.execute(query, [f"inturn.{name}"])[0]


def _size(database: Database, name: str) -> int:
    return int(database.value("SELECT pg_total_relation_size(%s::regclass)", [f"inturn.{name}"]))
