"""`inturn topic`: topics are created, and listed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click
from psycopg import sql
from psycopg.rows import dict_row

from inturn.cli.database import Database, pass_database
from inturn.cli.output import Column, json_option, print_json, print_table


@click.group(
    no_args_is_help=False,
    epilog="""\b
Example:
  inturn topic create orders
  inturn topic list""",
)
def topic() -> None:
    """Create topics and list them."""


@topic.command(
    epilog="""\b
Example:
  inturn topic create orders --target sql:app.apply_order --max-attempts 10"""
)
@click.argument("name")
@click.option(
    "--target",
    metavar="TARGET",
    help="What applies its commands: python, or sql:SCHEMA.FUNCTION.  [default: python]",
)
@click.option("--max-attempts", type=int, help="A command that failed so often holds its key.  [default: 5]")
@click.option(
    "--backoff-base",
    metavar="INTERVAL",
    help="The wait before the second attempt, then doubled.  [default: 1 second]",
)
@click.option("--backoff-cap", metavar="INTERVAL", help="The longest wait.  [default: 5 minutes]")
@click.option("--max-payload-bytes", type=int, help="The largest payload.  [default: 1048576]")
@click.option("--batch-commands", type=int, help="The most commands in one turn.  [default: 100]")
@pass_database
def create(database: Database, /, name: str, **settings: str | int | None) -> None:
    """Create a topic; done already, it says so.

    INTERVAL is as PostgreSQL writes it: '500 ms', '2 minutes'.
    """
    given = {"name": name, **{key: value for key, value in settings.items() if value is not None}}
    arguments = sql.SQL(", ").join(
        sql.SQL("{} => {}").format(sql.Identifier(key), sql.Literal(value)) for key, value in given.items()
    )
    with database.connect() as connection:
        created = connection.execute(
            sql.SQL("SELECT {}.create_topic({})").format(sql.Identifier(database.schema), arguments)
        ).fetchone()
    click.echo(f"topic {name} {'created' if created and created[0] else 'exists already'}")


@topic.command(
    "list",
    epilog="""\b
Example:
  inturn topic list --json""",
)
@json_option
@pass_database
def list_topics(database: Database, *, as_json: bool) -> None:
    """List the topics and their settings."""
    with database.connect() as connection:
        topics: list[dict[str, Any]] = (
            connection.cursor(row_factory=dict_row)
            .execute(
                sql.SQL(
                    "SELECT name AS topic, target, max_attempts, backoff_base, backoff_cap,"
                    " max_payload_bytes, batch_commands, created_at FROM {}.topic ORDER BY name"
                ).format(sql.Identifier(database.schema))
            )
            .fetchall()
        )
    if as_json:
        print_json([_in_seconds(row) for row in topics])
    elif topics:
        print_table(
            [
                Column("topic", cut="middle"),
                Column("target", cut="middle"),
                Column("attempts", right=True),
                Column("backoff"),
                Column("payload", right=True),
                Column("batch", right=True),
            ],
            [_row(row) for row in topics],
        )
    else:
        click.echo("inturn: no topics yet. Create one with: inturn topic create NAME", err=True)


def _in_seconds(topic: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{key}_seconds" if isinstance(value, timedelta) else key: (
            value.total_seconds() if isinstance(value, timedelta) else value
        )
        for key, value in topic.items()
    }


def _row(topic: dict[str, Any]) -> list[str]:
    return [
        topic["topic"],
        topic["target"],
        str(topic["max_attempts"]),
        f"{_span(topic['backoff_base'])} to {_span(topic['backoff_cap'])}",
        f"{topic['max_payload_bytes']:,} B",
        str(topic["batch_commands"]),
    ]


def _span(interval: timedelta) -> str:
    """Return a setting in its largest whole unit: 90 s is 90s, not 1m."""
    milliseconds = round(interval.total_seconds() * 1000)
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds >= length and milliseconds % length == 0:
            return f"{milliseconds // length}{unit}"
    return f"{milliseconds}ms"
