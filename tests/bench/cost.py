"""Cost of an append: its WAL, and its backend's time on the processor, beside a plain INSERT."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from support.database import Database
from support.roles import OWNER

from bench.ground import Ground, fill
from bench.section import Section, ratio

_PLAIN = "plain INSERT"
_INSERT = (
    "INSERT INTO app.plain (topic, key, name, payload) VALUES ('orders', %s, 'insert', '{\"amount\": 1}')"
)
_APPEND = "SELECT inturn.append('orders', %s, 'insert', '{\"amount\": 1}')"
#: In every sample, so that connections and plans are warm before it begins.
_WARMING = 200
_ACTIVE = 1_000


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a transaction of one statement costs."""

    wal_bytes: float
    cpu_microseconds: float


def measure(ground: Ground) -> Section:
    count = ground.size(5_000, 300)
    keys = range(1, count + _WARMING + 1)
    samples: dict[str, list[_Cost]] = {}
    with ground.database() as database:
        fill(database, "orders", len(keys), 1, prefix="idle")
        for number in range(ground.size(5, 2)):
            # The keys that were woken go idle again, and those that are active get a command.
            database.execute("CALL inturn.apply()")
            fill(database, "orders", _ACTIVE, 1, prefix="active")
            for work, statement, names in (
                (_PLAIN, _INSERT, [f"new{number}-{i}" for i in keys]),
                ("append, new keys", _APPEND, [f"new{number}-{i}" for i in keys]),
                (f"append, {_ACTIVE:,} active keys", _APPEND, [f"active{i % _ACTIVE + 1}" for i in keys]),
                ("append, keys that are idle", _APPEND, [f"idle{i}" for i in keys]),
            ):
                samples.setdefault(work, []).append(_cost(database, statement, names))
    return _section(ground, count, samples)


def _section(ground: Ground, count: int, samples: dict[str, list[_Cost]]) -> Section:
    section = Section(
        "Cost of an append",
        ["a transaction of its own", "WAL, bytes", "to plain", "CPU, µs", "to plain"],
        notes=[
            f"One session, prepared statements, medians of {len(samples[_PLAIN])} times {count:,}.",
            "CPU of the session's backend, by /proc/PID/schedstat: the commit's own part is in it.",
        ],
    )
    plain: _Cost | None = None
    for work, costs in samples.items():
        found = _Cost(
            statistics.median(cost.wal_bytes for cost in costs),
            statistics.median(cost.cpu_microseconds for cost in costs),
        )
        plain = plain or found
        section.rows.append(
            [
                work,
                f"{found.wal_bytes:,.0f}",
                ratio(found.wal_bytes, plain.wal_bytes),
                f"{found.cpu_microseconds:,.1f}",
                ratio(found.cpu_microseconds, plain.cpu_microseconds),
            ]
        )
        ground.say(f"{work}: {found.wal_bytes:,.0f} bytes, {found.cpu_microseconds:,.1f} µs")
    return section


def _cost(database: Database, statement: str, keys: Sequence[str]) -> _Cost:
    """Run a statement for each key, in transactions of their own on a new connection."""
    # There was no checkpoint since the database was made, after which whole pages would go into the WAL.
    with database.connect(user=OWNER) as connection:
        query = sql.SQL(statement)
        _run(connection, query, keys[:_WARMING])
        wal, cpu = _wal_at(connection), cpu_of(connection)
        _run(connection, query, keys[_WARMING:])
        cpu, wal = cpu_of(connection) - cpu, _wal_at(connection) - wal
    count = len(keys) - _WARMING
    return _Cost(wal / count, cpu / count / 1000)


def _run(connection: psycopg.Connection[Any], query: sql.SQL, keys: Sequence[str]) -> None:
    for key in keys:
        connection.execute(query, [key], prepare=True)


def _wal_at(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
    assert row is not None
    return int(row[0])


def cpu_of(connection: psycopg.Connection[Any]) -> int:
    """Return the nanoseconds that the backend has had a processor."""
    return int(Path(f"/proc/{connection.info.backend_pid}/schedstat").read_text().split()[0])
