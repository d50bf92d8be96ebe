"""`inturn status`: the topics and the appliers, at a glance."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, LiteralString

import click
from psycopg import Connection, sql
from psycopg.rows import dict_row

from inturn.cli.database import Database, pass_database
from inturn.cli.key_text import TOPIC, shown
from inturn.cli.keys import require_topic
from inturn.cli.output import Column, age, json_option, print_json, print_table

_RECENT = timedelta(minutes=5)
_MANY = 10


@click.command(
    epilog="""\b
Example:
  inturn status
  inturn status --topic orders --json"""
)
@click.option("--topic", type=TOPIC, metavar="NAME", help="Only this one, and its appliers.")
@json_option
@pass_database
def status(database: Database, /, *, topic: str | None, as_json: bool) -> None:
    """Sum up the topics, and the appliers and what each is doing.

    Keys are counted by state, idle ones are not. pending counts the commands not
    applied, oldest is how long the longest of them has waited. rate is commands
    applied a second, failed counts failures, in the last five minutes.
    """
    with database.connect() as connection:
        if topic is not None:
            require_topic(connection, database.schema, topic)
        topics = _rows(
            connection, database.schema, "SELECT * FROM {}.topic_status(%s::text, %s)", topic, _RECENT
        )
        appliers = [
            applier
            for applier in _rows(connection, database.schema, "SELECT * FROM {}.list_appliers()")
            if topic is None or topic in applier["topics"]
        ]
        clock = connection.execute("SELECT clock_timestamp()").fetchone()
    assert clock is not None  # noqa: S101 - a SELECT without FROM has a row
    for each in topics:
        each["applied_per_second"] = round(each["applied"] / _RECENT.total_seconds(), 3)
    if as_json:
        print_json({"topics": topics, "appliers": appliers})
    elif topics:
        _print_topics(topics, clock[0])
        click.echo()
        _print_appliers(appliers, clock[0])
    else:
        click.echo("inturn: no topics yet. Create one with: inturn topic create NAME", err=True)


def _rows(
    connection: Connection[Any], schema: str, query: LiteralString, *parameters: object
) -> list[dict[str, Any]]:
    composed = sql.SQL(query).format(sql.Identifier(schema))
    return connection.cursor(row_factory=dict_row).execute(composed, parameters).fetchall()


_STATES = ("held", "waiting", "retrying", "paused", "leased", "ready")
#: Has a column only where there are any.
_RARE = ("waiting", "leased")


def _print_topics(topics: list[dict[str, Any]], now: datetime) -> None:
    states = [state for state in _STATES if state not in _RARE or any(topic[state] for topic in topics)]
    print_table(
        [
            Column("topic", cut="middle"),
            *(Column(name, right=True) for name in states),
            *(Column(name, right=True) for name in ("pending", "oldest", "rate", "failed")),
        ],
        [_topic_row(topic, states, now) for topic in topics],
    )
    for topic in topics:
        if topic["paused_at"] is not None:
            until = "until an operator resumes it"
            if topic["paused_until"] is not None:
                until = f"for {age((topic['paused_until'] - now).total_seconds())} more"
            since = age((now - topic["paused_at"]).total_seconds())
            click.echo(f"topic {shown(topic['topic'])} is paused since {since}, {until}")


def _topic_row(topic: dict[str, Any], states: list[str], now: datetime) -> list[str]:
    oldest = topic["oldest_pending_at"]
    return [
        topic["topic"],
        *(f"{topic[state]:,}" if topic[state] else "" for state in states),
        f"{topic['pending']:,}" + ("" if topic["exact"] else "+"),
        age((now - oldest).total_seconds()) if oldest else "",
        _rate(topic["applied_per_second"]) if topic["applied"] else "",
        f"{topic['failed']:,}" if topic["failed"] else "",
    ]


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}/s" if per_second >= _MANY else f"{per_second:.2g}/s"


def _print_appliers(appliers: list[dict[str, Any]], now: datetime) -> None:
    alive = [applier for applier in appliers if applier["alive"]]
    gone = len(appliers) - len(alive)
    if not alive:
        click.echo("no applier is alive. Start one with: inturn apply")
    else:
        print_table(
            [
                Column("applier", cut="middle"),
                Column("topics", cut="end"),
                Column("host", cut="middle"),
                Column("pid", right=True),
                Column("doing"),
                Column("for", right=True),
                Column("key", cut="middle", whole=True),
                Column("seq", right=True),
            ],
            [_applier_row(applier, now) for applier in alive],
            [f"waits for {applier['waits_for']}" if applier["waits_for"] else "" for applier in alive],
        )
    if gone:
        click.echo(f"{gone} more seen in the last day {'is' if gone == 1 else 'are'} gone: see --json")


def _applier_row(applier: dict[str, Any], now: datetime) -> list[str]:
    return [
        applier["applier"],
        ", ".join(applier["topics"]),
        applier["host"] or "",
        str(applier["pid"] or applier["backend_pid"] or ""),
        applier["doing"] + (f" {applier['leases']:,} keys" if applier["leases"] > 1 else ""),
        age((now - applier["since"]).total_seconds()) if applier["since"] else "",
        shown(applier["key"]) if applier["key"] is not None else "",
        str(applier["seq"] or ""),
    ]
