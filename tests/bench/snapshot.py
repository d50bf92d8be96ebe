"""A snapshot that is held for ten minutes: what is appended and applied meanwhile, every ten seconds."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from support.roles import OWNER

from bench import plot
from bench.callers import Callers, append_script, at_call
from bench.ground import Ground
from bench.kinds import APPLICATION, KINDS, Kind
from bench.section import Section, rate, ratio

#: Before the snapshot is taken, in seconds.
_WARMING = 5.0


@dataclass(frozen=True, slots=True)
class Load:
    """Callers of so many keys, those of all kinds together or of each."""

    name: str
    keys: int
    callers: int
    of_each: bool

    def clients(self, kinds: int) -> int:
        """Return how many callers each of so many kinds has."""
        return self.callers if self.of_each else -(-self.callers // kinds)


LOADS = (Load("1,000 keys", 1_000, 8, of_each=False), Load("one key", 1, 4, of_each=True))


@dataclass(slots=True)
class Series:
    """The rates of one kind, for every interval of the run."""

    appended: list[float]
    applied: list[float]


def measure(ground: Ground, held: float | None, kinds: Sequence[str], *, compare: bool = True) -> Section:
    """Hold a snapshot under each load.

    Args:
        held: for how many seconds; None: ten minutes, or some seconds in a quick run.
        kinds: which appliers are at work, all of them at once.
        compare: with runs as long, just before, in which no snapshot is held.
    """
    seconds = held or ground.size(600.0, 10.0)
    interval = max(round(seconds / 60), 1)
    edge = max(int(seconds / interval / 10), 1)
    section = Section(
        f"A snapshot held for {seconds:g} seconds",
        [
            "work",
            f"first {edge * interval} s",
            f"last {edge * interval} s",
            "last / first",
            "slowest",
            *(["not held"] if compare else []),
        ],
        notes=[
            "Commands a second. All kinds of applier at once, each one session with a topic of its own.",
            *(
                ["not held: last / first of a run as long before it, without the snapshot."]
                if compare
                else []
            ),
            *(f"{load.name}: {load.clients(len(kinds))} callers a kind." for load in LOADS),
            f"slowest: the least in {interval} seconds.",
        ],
    )
    for load in LOADS:
        without = _run(ground, load, seconds, interval, kinds, hold=False) if compare else None
        found = _run(ground, load, seconds, interval, kinds, hold=True)
        for name, series in found.items():
            for what in ("appended", "applied"):
                rates = getattr(series, what)
                first, last = statistics.mean(rates[:edge]), statistics.mean(rates[-edge:])
                cells = [rate(first), rate(last), ratio(last, first), rate(min(rates))]
                if without:
                    others = getattr(without[name], what)
                    cells.append(ratio(statistics.mean(others[-edge:]), statistics.mean(others[:edge])))
                section.rows.append([f"{load.name}, {name}: {what}", *cells])
                ground.say(f"{load.name}, {name}: {what} {' '.join(cells)}")
        if ground.plots:
            _draw(ground, section, load, found, interval)
    return section


def _run(
    ground: Ground, load: Load, seconds: float, interval: int, kinds: Sequence[str], *, hold: bool
) -> dict[str, Series]:
    with ground.database() as database, contextlib.ExitStack() as stack:
        database.execute(APPLICATION)
        at_work = [KINDS[kind](database) for kind in kinds]
        longest = _WARMING + seconds + 60
        callers = []
        for kind in at_work:
            stack.enter_context(kind.at_work())
            script, clients = append_script(kind.topic, load.keys), load.clients(len(kinds))
            callers.append(stack.enter_context(at_call(database, script, clients=clients, seconds=longest)))
        time.sleep(_WARMING)
        holder = database.connect(autocommit=not hold, user=OWNER)
        if hold:
            holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM inturn.topic")
        times, counts = _sample(at_work, callers, int(seconds / interval), interval)
        holder.rollback()
        return {
            kind.name: Series(_appended(each, times), _applied([row[number] for row in counts], times))
            for number, (kind, each) in enumerate(zip(at_work, callers, strict=True))
        }


def _sample(
    kinds: Sequence[Kind], callers: Sequence[Callers], intervals: int, interval: int
) -> tuple[list[float], list[list[int]]]:
    """Return the times between the intervals, and how much each kind had applied then."""
    started_at = time.time()
    times, counts = [started_at], [[kind.applied() for kind in kinds]]
    for number in range(1, intervals + 1):
        time.sleep(max(started_at + number * interval - time.time(), 0))
        for each in callers:
            each.check()
        counts.append([kind.applied() for kind in kinds])
        times.append(time.time())
    # The last second's line is there only now.
    time.sleep(1.5)
    return times, counts


def _applied(counts: Sequence[int], times: Sequence[float]) -> list[float]:
    return [
        (counts[number] - counts[number - 1]) / (times[number] - times[number - 1])
        for number in range(1, len(times))
    ]


def _appended(callers: Callers, times: Sequence[float]) -> list[float]:
    """Return the rate of each interval; a second counts where the middle of it lies."""
    seconds = [(at - 0.5, number) for at, number in callers.seconds()]
    found = []
    for begin, end in itertools.pairwise(times):
        within = [number for middle, number in seconds if begin <= middle < end]
        found.append(statistics.mean(within) if within else 0.0)
    return found


def _draw(ground: Ground, section: Section, load: Load, found: dict[str, Series], interval: int) -> None:
    assert ground.plots is not None
    path = ground.plots / f"snapshot-{load.name.replace(',', '').replace(' ', '-')}.svg"
    lines = {
        f"{name}: {what}": rates
        for name, series in found.items()
        for what, rates in (("appended", series.appended), ("applied", series.applied))
    }
    if plot.rates(path, f"{load.name}: commands a second while a snapshot is held", lines, interval):
        section.plots.append(path)
    else:
        print("  matplotlib is not there: no plot", file=sys.stderr)
