"""Rights: what it costs that roles reach the tables through functions only, and topics by their grants."""

from __future__ import annotations

import statistics
import time

from support.database import Database
from support.roles import APPLIER, CALLER, OWNER

from bench import pgbench
from bench.ground import Ground, fill
from bench.section import Section, rate, ratio

_ROUNDS = 9
_CLIENTS = 16
#: As if there were no roles: every function runs with the rights of whoever calls it.
_WITHOUT_ROLES = """
DO $$
DECLARE
    routine regprocedure;
BEGIN
    FOR routine IN
        SELECT p.oid FROM pg_proc p WHERE p.pronamespace = 'inturn'::regnamespace AND p.prosecdef
    LOOP
        EXECUTE format('ALTER ROUTINE %s SECURITY INVOKER', routine);
    END LOOP;
END $$
"""


def measure(ground: Ground) -> Section:
    section = Section(
        "What the roles cost",
        ["work", "with, /s", "without, /s", "with / without", "least", "most"],
        notes=[
            "Drain: one-command keys by `CALL inturn.apply()`.",
            "With: by the applier's login, which has no right on a table.",
            "Without: by the owner, and every function has the rights of who calls it.",
            "Append: to new keys of a topic that is granted to the caller's login, and of one that is open.",
            f"{_CLIENTS} clients: each append is a transaction, by pgbench with prepared statements.",
            f"Medians of {_ROUNDS} pairs, one after the other; least and most: of the pairs' ratios.",
        ],
    )
    with ground.database() as filled:
        fill(filled, "orders", ground.size(20_000, 200), 1)
        pairs = [
            (_drain(ground, filled, roles=True), _drain(ground, filled, roles=False))
            for _ in range(ground.size(_ROUNDS, 1))
        ]
        section.rows.append(_row("drain by one session", pairs))
    with ground.database() as database:
        database.execute("SELECT inturn.create_topic(name) FROM (VALUES ('granted'), ('open')) t (name)")
        database.execute("SELECT inturn.grant_topic('granted', 'caller', %s)", [CALLER])
        commands = ground.size(20_000, 200)
        _append(database, "granted", "warm", commands)
        _append(database, "open", "warm", commands)
        pairs = [
            (
                _append(database, "granted", f"{number}:", commands),
                _append(database, "open", f"{number}:", commands),
            )
            for number in range(ground.size(_ROUNDS, 1))
        ]
        section.rows.append(_row("append, all by one statement", pairs))
        seconds = ground.size(5, 1)
        pairs = []
        for number in range(ground.size(_ROUNDS, 1)):
            # By turns, which is first: the tables grow, and a checkpoint comes by.
            topics = ("open", "granted") if number % 2 else ("granted", "open")
            found = {topic: _append_committed(database, topic, seconds) for topic in topics}
            pairs.append((found["granted"], found["open"]))
        section.rows.append(_row(f"append, {_CLIENTS} clients", pairs))
    return section


def _row(work: str, pairs: list[tuple[float, float]]) -> list[str]:
    ratios = [first / second for first, second in pairs]
    one, other = (statistics.median(values) for values in zip(*pairs, strict=True))
    return [
        work,
        rate(one),
        rate(other),
        ratio(statistics.median(ratios), 1),
        ratio(min(ratios), 1),
        ratio(max(ratios), 1),
    ]


def _drain(ground: Ground, filled: Database, *, roles: bool) -> float:
    """Return how many commands a second one session applies."""
    with ground.copy(filled) as database:
        if not roles:
            database.administer(_WITHOUT_ROLES)
        with database.connect(user=APPLIER if roles else OWNER) as session:
            started_at = time.monotonic()
            row = session.execute("CALL inturn.apply()").fetchone()
            seconds = time.monotonic() - started_at
        assert row is not None
        assert database.value("SELECT count(*) FROM inturn.ticket") == 0
        return float(row[0] / seconds)


def _append(database: Database, topic: str, prefix: str, commands: int) -> float:
    """Return how many commands a second one session appends, each to a new key."""
    with database.connect(user=CALLER) as session:
        started_at = time.monotonic()
        session.execute(
            "SELECT count(inturn.append(%s, %s || n, 'insert', '{\"amount\": 1}'))"
            " FROM generate_series(1, %s) n",
            [topic, prefix, commands],
        )
        return commands / (time.monotonic() - started_at)


def _append_committed(database: Database, topic: str, seconds: int) -> float:
    """Return how many transactions a second callers commit, each with one append to a new key."""
    script = pgbench.NEW_KEYS.replace("orders", topic)
    return pgbench.rate(
        database, script, clients=_CLIENTS, seconds=seconds, protocol="prepared", dsn=database.caller_dsn
    )
