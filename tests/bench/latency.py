"""Latency from the commit of an append to the start of its handler: at idle, and at half of the most."""

from __future__ import annotations

import time

from support.database import Database, until

from bench.callers import append_script, at_call
from bench.ground import Ground, at_work
from bench.probe import Probe, percentile
from bench.section import Section, rate
from inturn.applier import Fleet

_CLIENTS, _KEYS, _WORKERS = 4, 1_000, 2
_SCRIPT = append_script("python", _KEYS)
PERCENTS = (50, 95, 99)


def measure(ground: Ground) -> Section:
    section = Section(
        "From commit to the start of the handler",
        ["load", "commands/s", *(f"p{percent}, ms" for percent in PERCENTS)],
        notes=[
            f"Python target, {_WORKERS} workers, a row a command; a probe appends to its own keys.",
            f"The most: what {_CLIENTS} callers append to {_KEYS:,} keys and the workers apply at once.",
        ],
    )
    with ground.database() as database:
        probe = Probe(database, "python")
        with at_work(database, probe.applier, topics=["python"], workers=_WORKERS) as fleet:
            # Longer than the polls of a worker that has just had work: all sleep.
            times = probe.milliseconds(keys=50, count=ground.size(60, 5), pause=0.3)
            _add(section, ground, "idle", 0, times)
            most = _most(database, fleet, ground.size(10.0, 2.0))
            ground.say(f"the most: {most:,.0f}/s")
            count = ground.size(600, 40)
            with at_call(database, _SCRIPT, clients=_CLIENTS, seconds=120, each_second=most / 2):
                begun, started_at = fleet.totals.commands, time.monotonic()
                times = probe.milliseconds(keys=50, count=count, pause=0.02)
                found = (fleet.totals.commands - begun) / (time.monotonic() - started_at)
            _add(section, ground, "half of the most", found, times)
    section.notes.append(f"The most was {most:,.0f} commands a second.")
    return section


def _most(database: Database, fleet: Fleet, seconds: float) -> float:
    """Return the commands a second that are appended and applied at once; all are applied when it returns."""
    with at_call(database, _SCRIPT, clients=_CLIENTS, seconds=seconds + 20) as callers:
        time.sleep(1.0)
        begun, started_at = fleet.totals.commands, time.time()
        time.sleep(seconds)
        applied, ended_at = fleet.totals.commands - begun, time.time()
        # Each line counts the second before it.
        appended = [number for at, number in callers.seconds() if started_at + 1 <= at <= ended_at]
    until(lambda: database.value("SELECT inturn.pending_commands('{python}')") == 0, "the backlog's end", 60)
    assert appended
    return min(applied / (ended_at - started_at), sum(appended) / len(appended))


def _add(section: Section, ground: Ground, load: str, commands: float, times: list[float]) -> None:
    found = [f"{percentile(times, percent):.1f}" for percent in PERCENTS]
    section.rows.append([load, rate(commands), *found])
    ground.say(f"{load}: {', '.join(found)} ms")
