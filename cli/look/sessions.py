"""What is known of sessions: what the schema's owner may not see, and what their appliers say of targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from psycopg import Connection, sql

from inturn.cli.terminal.output import echo
from inturn.cli.terminal.rows import Row, fetch

_OWNER = """
    SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(nspowner)) FROM pg_catalog.pg_namespace
    WHERE nspname = %s AND NOT pg_catalog.pg_has_role(nspowner, 'pg_read_all_stats', 'USAGE')"""


def say_what_is_hidden(connection: Connection[Any], schema: str, *, quiet: bool = False) -> None:
    """Say in a line on stderr that other users' sessions are hidden, and what to grant, where that is so.

    Raises:
        psycopg.Error: the database refused.
    """
    if quiet:
        return
    for (owner,) in connection.execute(_OWNER, [schema]):
        echo(
            "inturn: what sessions of other users do is not shown, because the schema's owner may not see it."
            f" A DBA may allow it: GRANT pg_monitor TO {owner}",
            err=True,
        )


def topics_down(connection: Connection[Any], schema: str) -> list[str]:
    """Return the topics whose target does not answer, by their appliers; a standby knows of no applier.

    Raises:
        psycopg.Error: the database refused.
    """
    if fetch(connection, sql.SQL("SELECT pg_is_in_recovery() AS standby"))[0]["standby"]:
        return []
    down = sql.SQL(
        "SELECT DISTINCT d.topic FROM {}.list_appliers() a, jsonb_object_keys(a.down) d (topic) WHERE a.alive"
    )
    return [row["topic"] for row in fetch(connection, down.format(sql.Identifier(schema)))]


def down_topics(appliers: list[Row]) -> dict[str, Row]:
    """Return the topics whose target does not answer: since when, the key tried last, and its error."""
    down: dict[str, Row] = {}
    for applier in appliers:
        for topic, report in applier["down"].items() if applier["alive"] else ():
            if topic not in down or report["since"] < down[topic]["since"]:
                down[topic] = report
    return down


def abandoned_lines(appliers: list[Row]) -> Iterator[str]:
    """Yield a line for each process that has abandoned handlers, which each of its workers announces."""
    processes: dict[str, Row] = {}
    for applier in appliers:
        # As of the worker that has announced itself last: none comes back.
        if applier["abandoned"] > processes.get(applier["process"], {"abandoned": 0})["abandoned"]:
            processes[applier["process"]] = applier
    for each in processes.values():
        handlers = "1 handler that" if each["abandoned"] == 1 else f"{each['abandoned']} handlers that"
        process = f"process {each['pid']} on {each['host']}"
        who = process if each["pid"] is not None else f"applier {each['applier']}"
        yield f"{who} has abandoned {handlers} did not return"
