"""What a statement costs: its plan, and the blocks that it reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg

from support.database import Database

Plan = dict[str, Any]


def explain(connection: psycopg.Connection[Any], query: str, parameters: Sequence[Any] = ()) -> Plan:
    """Run a statement under EXPLAIN (ANALYZE, BUFFERS) and return its plan; it takes effect."""
    row = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}", parameters).fetchone()
    assert row is not None
    plan: Plan = row[0][0]["Plan"]
    return plan


def believe(database: Database, tables: Sequence[str], statistics: tuple[int, float] | None) -> None:
    """Have the planner believe so many pages and rows of tables of inturn; None: what there are."""
    names = [f"inturn.{table}" for table in tables]
    if statistics is None:
        database.execute(f"ANALYZE {', '.join(names)}")
    else:
        update = "UPDATE pg_class SET relpages = %s, reltuples = %s WHERE oid = ANY (%s::text[]::regclass[])"
        database.administer(update, (*statistics, names))


def buffers(plan: Plan) -> int:
    """Return how many blocks it read, those of the functions that it called included."""
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


def cost(connection: psycopg.Connection[Any], query: str, parameters: Sequence[Any] = ()) -> int:
    """Return how many blocks a statement reads that reads as many each time: the least of three runs.

    In one of them a session may read the catalog again, since autovacuum was there, or plan anew.
    """
    return min(buffers(explain(connection, query, parameters)) for _ in range(3))


def nodes(plan: Plan) -> Iterator[Plan]:
    """Walk over the plan, from the top."""
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def query_of_claim(connection: psycopg.Connection[Any]) -> tuple[str, dict[str, str]]:
    """Return the query inside claim, with $1 topic, $2 since, $3 now, $4 max_keys, and its settings."""
    row = connection.execute(
        "SELECT prosrc, proconfig FROM pg_proc"
        " WHERE oid = 'inturn.claim(text, timestamptz, integer)'::regprocedure"
    ).fetchone()
    assert row is not None
    source, settings = row
    found = re.search(r"RETURN QUERY\s+(SELECT.*?SKIP LOCKED)", source, re.DOTALL)
    assert found is not None, "claim has no query that skips locked rows"
    query = found[1]
    for name, number in (("claim.topic", 1), ("since", 2), ("now", 3), ("max_keys", 4)):
        query, replaced = re.subn(rf"\b{re.escape(name)}\b", f"${number}", query)
        assert replaced >= 1, name
    return query, dict(setting.split("=", 1) for setting in settings)
