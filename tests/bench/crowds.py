"""Crowds of appliers: how fast many drain what one could drain alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from support import shop
from support.database import Database

from bench.ground import Ground, at_work, fill, row_writer
from bench.section import Section, rate, ratio
from inturn.applier import Applier

CROWDS, _QUICK_CROWDS = (1, 4, 16, 32), (1, 4)
#: A topic of each target to warm up with.
_WARM_SQL, _WARM_PYTHON = "warm-sql", "warm-python"
_WARM_TOPICS = f"""
SELECT inturn.create_topic('{_WARM_SQL}', 'sql:app.apply_order');
SELECT inturn.create_topic('{_WARM_PYTHON}')
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be drained: so many keys in a topic of each target, each so deep."""

    name: str
    sql_keys: int
    python_keys: int
    deep: int

    def commands(self, topic: str) -> int:
        """Return how many there are in a topic."""
        return (self.sql_keys if topic == "orders" else self.python_keys) * self.deep


def measure(ground: Ground) -> Section:
    limit = ground.size(10.0, 2.0)
    crowds = ground.size(CROWDS, _QUICK_CROWDS)
    section = Section(
        "Crowds of appliers: commands a second",
        ["work", *(f"{count}" for count in crowds), *(f"{count} / best" for count in crowds)],
        notes=[
            "CALL: backends at CALL inturn.apply(). Workers: of one `inturn apply`, here in this process.",
            "Each command writes a row; 1 or 100 commands a key. Connections are opened and warmed first.",
            "All are as once they have run for a while: none takes its first keys of a topic alone.",
            f"A drain ends when nothing is left, or after {limit:g} seconds.",
        ],
    )
    loads = [
        Load("1 a key", ground.size(200_000, 3_000), ground.size(40_000, 1_000), 1),
        # So many that 32 sessions, which begin with a key each, have long been in their stride when it ends.
        Load("100 a key", ground.size(15_000, 60), ground.size(500, 20), 100),
    ]
    for load in loads:
        with ground.database() as filled:
            filled.execute(_WARM_TOPICS)
            fill(filled, "orders", load.sql_keys, load.deep)
            fill(filled, "python", load.python_keys, load.deep)
            for name, drain in _DRAINS.items():
                _add(
                    section,
                    ground,
                    f"{name}, {load.name}",
                    _rates(ground, filled, load, drain, limit, crowds),
                )
    return section


def _rates(
    ground: Ground,
    filled: Database,
    load: Load,
    drain: Callable[[Database, Load, int, float], float],
    limit: float,
    crowds: Sequence[int],
) -> list[float]:
    found = []
    for count in crowds:
        with ground.copy(filled) as database:
            found.append(drain(database, load, count, limit))
    return found


def _add(section: Section, ground: Ground, work: str, rates: list[float]) -> None:
    best = max(rates)
    section.rows.append([work, *map(rate, rates), *(ratio(found, best) for found in rates)])
    ground.say(f"{work}: {', '.join(map(rate, rates))} /s")


def _by_call(database: Database, load: Load, count: int, limit: float) -> float:
    sessions = [database.session(autocommit=True) for _ in range(count)]
    for number, session in enumerate(sessions):
        _warm_up(database, _WARM_SQL, f"{number}-")
        session.execute("CALL inturn.apply(ARRAY[%s])", [_WARM_SQL])
    started_at = time.monotonic()
    calls = [session.begin("CALL inturn.apply('{orders}', %s)", [limit]) for session in sessions]
    done, failed = (sum(column) for column in zip(*(call.result()[0] for call in calls), strict=True))
    seconds = time.monotonic() - started_at
    _check(load, "orders", done, failed, seconds < limit)
    return float(done / seconds)


def _by_sql_workers(database: Database, load: Load, count: int, limit: float) -> float:
    return _by_fleet(database, load, count, limit, None, "orders", _WARM_SQL)


def _by_python_workers(database: Database, load: Load, count: int, limit: float) -> float:
    applier = row_writer(["python", _WARM_PYTHON])
    return _by_fleet(database, load, count, limit, applier, "python", _WARM_PYTHON)


def _by_fleet(
    database: Database, load: Load, count: int, limit: float, applier: Applier | None, topic: str, warm: str
) -> float:
    # Paused until all are warm.
    database.execute("SELECT inturn.pause_topic(%s)", [topic])
    with shop.steady_workers(), at_work(database, applier, topics=[topic, warm], workers=count) as fleet:
        for number in range(3):
            wanted = fleet.totals.commands + _warm_up(database, warm, f"{number}-", 20 * count)
            while fleet.totals.commands < wanted:
                time.sleep(0.01)
        begun, expected, started_at = fleet.totals.commands, load.commands(topic), time.monotonic()
        database.execute("SELECT inturn.resume_topic(%s)", [topic])
        while fleet.totals.commands - begun < expected and time.monotonic() - started_at < limit:
            time.sleep(0.002)
        done, seconds = fleet.totals.commands - begun, time.monotonic() - started_at
        _check(load, topic, done, fleet.totals.failures, seconds < limit)
    return done / seconds


def _warm_up(database: Database, topic: str, prefix: str, keys: int = 50) -> int:
    """Append a command to each of some new keys; return how many."""
    database.execute(
        "SELECT count(inturn.append(%s, %s || i, 'insert')) FROM generate_series(1, %s) i",
        [topic, prefix, keys],
    )
    return keys


def _check(load: Load, topic: str, done: int, failed: int, drained: bool) -> None:
    assert failed == 0, failed
    assert done == load.commands(topic) if drained else done > 0, (load, topic, done)


_DRAINS = {
    "CALL": _by_call,
    "SQL workers": _by_sql_workers,
    "Python workers": _by_python_workers,
}
