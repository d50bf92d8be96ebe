"""Partitions: whether a log and a history that are partitioned by the hash of the key pay on one machine."""

from __future__ import annotations

import statistics
import time

from support.database import Database

from bench import measures, pgbench
from bench.ground import Ground
from bench.section import Section, rate, ratio

_PARTITIONS = 8
_ROUNDS = 5
_CLIENTS = 16
_WORK = (
    f"append, new keys, {_CLIENTS} clients",
    "`CALL inturn.apply()`, 1 a key",
    "`CALL inturn.apply()`, 100 a key",
    "prune",
)


def measure(ground: Ground) -> Section:
    section = Section(
        "Partitions",
        ["work, commands/s", "one table", f"{_PARTITIONS} partitions", "ratio", "least", "most"],
        notes=[
            "`command_log` and `turn` by the hash of the key, on one disk.",
            f"Medians of {_ROUNDS} pairs, each in new databases; least and most: of the pairs' ratios.",
        ],
    )
    rounds = []
    for number in range(ground.size(_ROUNDS, 1)):
        pair = {count: _rates(ground, count) for count in ((1, _PARTITIONS), (_PARTITIONS, 1))[number % 2]}
        rounds.append(list(zip(pair[1], pair[_PARTITIONS], strict=True)))
    for work, pairs in zip(_WORK, zip(*rounds, strict=True), strict=True):
        ratios = [second / first for first, second in pairs]
        section.rows.append(
            [
                work,
                *(rate(statistics.median(values)) for values in zip(*pairs, strict=True)),
                ratio(statistics.median(ratios), 1),
                ratio(min(ratios), 1),
                ratio(max(ratios), 1),
            ]
        )
        ground.say(" ".join(section.rows[-1]))
    return section


def _rates(ground: Ground, partitions: int) -> list[float]:
    """Return the rates of each kind of work, in a new database."""
    with ground.database(partitions) as database:
        appended = pgbench.rate(
            database, pgbench.NEW_KEYS, clients=_CLIENTS, seconds=ground.size(4, 1), protocol="prepared"
        )
        database.execute("CALL inturn.apply()")
        few, many = ground.size(20_000, 200), ground.size(200_000, 1_000)
        return [
            appended,
            measures.drain_by_sql(database, few, few, "a"),
            measures.drain_by_sql(database, many // 100, many, "b"),
            _prune(database),
        ]


def _prune(database: Database) -> float:
    """Return how many commands a second go."""
    started_at = time.monotonic()
    commands, next_key = 0, ""
    while next_key is not None:
        batch = "SELECT next_key, commands FROM inturn.prune_batch('orders', %s, older_than => '0')"
        ((next_key, some),) = database.execute(batch, [next_key])
        commands += some
    return commands / (time.monotonic() - started_at)
