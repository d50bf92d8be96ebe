"""Latency from the commit of an append to the start of its handler: at idle, and at half of the most.

In both numberings: what arrives is numbered by appliers, which takes its time.
"""

from __future__ import annotations

import time

from support.database import Database, until

from bench.callers import append_script, at_call
from bench.ground import Ground, at_work
from bench.probe import Probe, percentile
from bench.section import Section, rate
from inturn.applier import Fleet

_CLIENTS, _KEYS, _WORKERS = 4, 1_000, 2
PERCENTS = (50, 95, 99)
#: The topic of each numbering.
_NUMBERINGS = {"in commit order": "python", "on arrival": "arrival-python"}


def measure(ground: Ground) -> Section:
    section = Section(
        "From commit to the start of the handler",
        ["numbered", "load", "commands/s", *(f"p{percent}, ms" for percent in PERCENTS)],
        notes=[
            f"Python target, {_WORKERS} workers, a row a command; a probe appends to its own keys.",
            f"The most: what {_CLIENTS} callers append to {_KEYS:,} keys and the workers apply at once.",
        ],
    )
    for numbered, topic in _NUMBERINGS.items():
        with ground.database() as database:
            _measure(section, ground, database, numbered, topic)
    return section


def _measure(section: Section, ground: Ground, database: Database, numbered: str, topic: str) -> None:
    probe, script = Probe(database, topic), append_script(topic, _KEYS)
    with at_work(database, probe.applier, topics=[topic], workers=_WORKERS) as fleet:
        # Longer than the polls of a worker that has just had work: all sleep.
        times = probe.milliseconds(keys=50, count=ground.size(60, 5), pause=0.3)
        _add(section, ground, numbered, "idle", 0, times)
        most = _most(database, fleet, topic, script, ground.size(10.0, 2.0))
        count = ground.size(600, 40)
        with at_call(database, script, clients=_CLIENTS, seconds=120, each_second=most / 2):
            begun, started_at = fleet.totals.commands, time.monotonic()
            times = probe.milliseconds(keys=50, count=count, pause=0.02)
            found = (fleet.totals.commands - begun) / (time.monotonic() - started_at)
        _add(section, ground, numbered, "half of the most", found, times)
    section.notes.append(f"The most was {most:,.0f} commands a second, numbered {numbered}.")


def _most(database: Database, fleet: Fleet, topic: str, script: str, seconds: float) -> float:
    """Return the commands a second that are appended and applied at once; all are applied when it returns."""
    with at_call(database, script, clients=_CLIENTS, seconds=seconds + 20) as callers:
        time.sleep(1.0)
        begun, started_at = fleet.totals.commands, time.time()
        time.sleep(seconds)
        applied, ended_at = fleet.totals.commands - begun, time.time()
        # Each line counts the second before it.
        appended = [number for at, number in callers.seconds() if started_at + 1 <= at <= ended_at]
    pending = f"SELECT inturn.pending_commands('{{{topic}}}')"
    until(lambda: database.value(pending) == 0, "the backlog's end", 60)
    assert appended
    return min(applied / (ended_at - started_at), sum(appended) / len(appended))


def _add(
    section: Section, ground: Ground, numbered: str, load: str, commands: float, times: list[float]
) -> None:
    found = [f"{percentile(times, percent):.1f}" for percent in PERCENTS]
    section.rows.append([numbered, load, rate(commands), *found])
    ground.say(f"numbered {numbered}, {load}: {', '.join(found)} ms")
