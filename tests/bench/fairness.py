"""Fairness: what the keys of others wait for when one key is fed without end."""

from __future__ import annotations

import contextlib

from support.database import Database

from bench.callers import append_script, at_call
from bench.ground import Ground, at_work, fill
from bench.probe import SQL_TARGET, Probe, percentile
from bench.section import Section, ratio

_WORKERS, _OTHERS, _FED_EACH_SECOND = 2, 1_000, 1_000
_PERCENTS = (50, 99)


def measure(ground: Ground) -> Section:
    backlog = ground.size(100_000, 4_000)
    section = Section(
        "One key fed without end beside 1,000 others",
        ["target", "the fed key", "p50, ms", "p99, ms", "p50 to without", "p99 to without"],
        notes=[
            f"{_WORKERS} workers. The others get a command every 5 ms; their times from commit to handler.",
            f"The fed key has {backlog:,} commands at the start and gets {_FED_EACH_SECOND:,} more a second.",
        ],
    )
    for target, topic in (("Python", "python"), ("SQL", "sql-probe")):
        without: list[float] | None = None
        for fed in (False, True):
            with ground.database() as database:
                database.execute(SQL_TARGET)
                database.execute("SELECT inturn.create_topic('sql-probe', 'sql:app.start')")
                times = _others(ground, database, topic, backlog if fed else 0)
            found = [percentile(times, percent) for percent in _PERCENTS]
            ratios = list(map(ratio, found, without)) if without else ["", ""]
            without = without or found
            row = [target, "fed" if fed else "without", *(f"{each:.1f}" for each in found), *ratios]
            section.rows.append(row)
            ground.say(", ".join(filter(None, row)))
    return section


def _others(ground: Ground, database: Database, topic: str, backlog: int) -> list[float]:
    """Return the times of the others' commands, sorted; backlog: of the fed key, 0: there is none."""
    probe, by_sql = Probe(database, topic), topic != "python"
    with contextlib.ExitStack() as stack:
        if backlog:
            fill(database, topic, 1, backlog, prefix="active")
        stack.enter_context(
            at_work(database, None if by_sql else probe.applier, topics=[topic], workers=_WORKERS)
        )
        if backlog:
            script = append_script(topic, 1)
            stack.enter_context(
                at_call(database, script, clients=1, seconds=120, each_second=_FED_EACH_SECOND)
            )
        return probe.milliseconds(keys=_OTHERS, count=ground.size(2_000, 100), pause=0.005, by_sql=by_sql)
