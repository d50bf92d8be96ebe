"""`inturn keys`: where the keys stand, the worst first."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click
from psycopg import Connection, sql
from psycopg.rows import dict_row

from inturn.cli.database import Database, pass_database
from inturn.cli.output import Column, age, first_line, json_option, print_json, print_table
from inturn.schema.errors import UnknownTopic

_STATES = ("held", "retrying", "ready", "idle")


@click.command(
    epilog="""\b
Example:
  inturn keys --topic orders --state held"""
)
@click.option("--topic", metavar="NAME", help="Only this topic's.")
@click.option("--state", type=click.Choice(_STATES), help="Only keys in this state.")
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    default=50,
    show_default=True,
    help="List at most N.",
)
@json_option
@pass_database
def keys(database: Database, *, topic: str | None, state: str | None, limit: int, as_json: bool) -> None:
    """List keys and where they stand, the worst first.

    held: its next command failed for good. retrying: it failed, and is tried again.
    ready: it has commands to apply. idle: everything is applied. lag counts the
    commands not applied, age is how long the next of them has waited.
    """
    with database.connect() as connection:
        if topic is not None:
            require_topic(connection, database.schema, topic)
        found = _listed(connection, database.schema, topic, state, limit + 1)
        clock = connection.execute("SELECT clock_timestamp()").fetchone()
    now: datetime = clock[0] if clock else datetime.now(UTC)
    if as_json:
        print_json(found[:limit])
    elif found:
        _print(found[:limit], now)
        if len(found) > limit:
            click.echo(f"inturn: there are more than {limit}; see them with --limit", err=True)
    else:
        click.echo("inturn: no such keys" if topic or state else "inturn: no keys yet", err=True)


def require_topic(connection: Connection[Any], schema: str, topic: str) -> None:
    """Make sure that the topic exists.

    Raises:
        UnknownTopic: it does not.
    """
    found = connection.execute(
        sql.SQL("SELECT FROM {}.topic WHERE name = %s").format(sql.Identifier(schema)), (topic,)
    ).fetchone()
    if found is None:
        raise UnknownTopic(
            f"topic '{topic}' does not exist", hint="List them with: inturn topic list", topic=topic
        )


def _listed(
    connection: Connection[Any], schema: str, topic: str | None, state: str | None, limit: int
) -> list[dict[str, Any]]:
    return (
        connection.cursor(row_factory=dict_row)
        .execute(
            sql.SQL(
                "SELECT topic, key, state, applied_seq, last_seq,"
                " pending, oldest_pending_at, attempts, ready_at, held_at, last_error"
                " FROM {}.list_keys(%s::text, %s::text, %s::integer)"
            ).format(sql.Identifier(schema)),
            (topic, state, limit),
        )
        .fetchall()
    )


def _print(found: list[dict[str, Any]], now: datetime) -> None:
    failing = any(key["last_error"] for key in found)
    columns = [
        Column("topic", cut="middle"),
        Column("key", cut="middle"),
        Column("state"),
        Column("applied", right=True),
        Column("lag", right=True),
        Column("age", right=True),
    ]
    if failing:
        columns.append(Column("attempts", right=True))
    print_table(
        columns,
        [_row(key, now)[: len(columns)] for key in found],
        [first_line(key["last_error"]) for key in found],
    )


def _row(key: dict[str, Any], now: datetime) -> list[str]:
    waiting = key["oldest_pending_at"]
    return [
        key["topic"],
        key["key"],
        key["state"],
        f"{key['applied_seq']}/{key['last_seq']}",
        str(key["pending"]),
        age((now - waiting).total_seconds() if waiting else None),
        str(key["attempts"] or ""),
    ]
