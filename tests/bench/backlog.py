"""Backlog: what a claim costs beside a million of whatever there may be a million of."""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass
from typing import Any

import psycopg
from support.roles import OWNER

from bench.ground import Ground
from bench.planting import plant
from bench.section import Section, ratio

#: The claim alone, and with the next commands of its key, as a worker of a Python target has it.
_CLAIMS = ("claim", "claim_commands")
_EXPLAIN = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM inturn.{}('python')"
_EXPLAINED = 11


@dataclass(frozen=True, slots=True)
class Case:
    """What there is so many of, beside a thousand ready keys; base: the case that it is compared with."""

    name: str
    rows: dict[str, int]
    base: str = ""


def _cases(few: int, many: int, held: int) -> list[Case]:
    ready, deep = f"{few:,} ready keys", f"a key {few:,} deep"
    return [
        Case(ready, {"ready": few}),
        Case(f"{many:,} ready keys", {"ready": many}, ready),
        Case(f"{many:,} idle keys", {"ready": few, "idle": many}, ready),
        Case(f"{held:,} held keys", {"ready": few, "held": held}, ready),
        Case(deep, {"ready": few, "deep": few}),
        Case(f"a key {many:,} deep", {"ready": few, "deep": many}, deep),
    ]


def measure(ground: Ground) -> Section:
    few, many, held = ground.size((1_000, 1_000_000, 10_000), (1_000, 10_000, 1_000))
    rounds = ground.size(30, 3)
    section = Section(
        "A claim beside a backlog",
        ["call", "beside", "ms", "ratio", "buffers", "ratio"],
        notes=[
            f"The key that is ready the longest; rolled back. Medians of {rounds * 10}, cases in turns.",
            f"Without a ratio: the base of those below. Beside idle, held and deep keys {few:,} are ready.",
            "claim_commands reads the key's next commands as well, at most 100.",
        ],
    )
    cases = _cases(few, many, held)
    with contextlib.ExitStack() as stack:
        connections = {}
        for case in cases:
            database = stack.enter_context(ground.database())
            plant(database, "python", **case.rows)
            connections[case.name] = database.connect(autocommit=False, user=OWNER)
        for claim in _CLAIMS:
            found = _figures(connections, claim, rounds)
            for case in cases:
                (milliseconds, buffers), base = found[case.name], found.get(case.base, (0.0, 0.0))
                cells = [f"{milliseconds:.3f}", ratio(milliseconds, base[0]), f"{buffers:.0f}"]
                section.rows.append([claim, case.name, *cells, ratio(buffers, base[1])])
                ground.say(" ".join(filter(None, section.rows[-1])))
    return section


def _figures(
    connections: dict[str, psycopg.Connection[Any]], claim: str, rounds: int
) -> dict[str, tuple[float, float]]:
    """Return for each case the milliseconds and the buffers of a claim."""
    times: dict[str, list[float]] = {name: [] for name in connections}
    for number in range(rounds + 1):
        for name, connection in connections.items():
            taken = [_seconds(connection, claim) * 1000 for _ in range(10)]
            # The first round makes the plans.
            times[name] += taken if number else []
    return {
        name: (statistics.median(times[name]), _buffers(connection, claim))
        for name, connection in connections.items()
    }


def _seconds(connection: psycopg.Connection[Any], claim: str) -> float:
    connection.execute("SELECT")
    started_at = time.monotonic()
    rows = connection.execute(f"SELECT * FROM inturn.{claim}('python')").fetchall()
    seconds = time.monotonic() - started_at
    connection.rollback()
    assert rows, claim
    return seconds


def _buffers(connection: psycopg.Connection[Any], claim: str) -> float:
    """Return how many buffers the claim looks at, those of the functions that it calls included."""
    found = []
    for _ in range(_EXPLAINED):
        row = connection.execute(_EXPLAIN.format(claim)).fetchone()
        connection.rollback()
        assert row is not None
        plan = row[0][0]["Plan"]
        found.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
    return float(statistics.median(found))
