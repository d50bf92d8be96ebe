"""`inturn topic`: topics are created, changed, and listed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, timedelta
from typing import Any, LiteralString

import click
from psycopg import Connection, sql

from inturn.cli.act.operator import Operator, Recorded, operator_options_with, reason_option
from inturn.cli.database import Database, pass_database
from inturn.cli.look.topics import no_topics, require_topic
from inturn.cli.set_up.merge import merge
from inturn.cli.set_up.topic_grants import grant, granted, revoke
from inturn.cli.set_up.topic_settings import FIXED, INTERVALS, NO, NO_VALUE, NONE_BY_0, SETTINGS, YES
from inturn.cli.terminal.key_text import TOPIC
from inturn.cli.terminal.output import Column, echo, json_option, print_json, print_table
from inturn.cli.terminal.rows import Row, fetch
from inturn.cli.terminal.spans import check_interval


@click.group(
    no_args_is_help=False,
    epilog="""\b
Example:
  inturn topic create orders
  inturn topic set orders --max-attempts 10
  inturn topic show orders""",
)
def topic() -> None:
    """Create topics, list and change them, and say who may act on them."""


topic.add_command(grant)
topic.add_command(revoke)
topic.add_command(merge)


def _settings(*, defaults: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that gives a command an option for every setting of a topic."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        settings = (*SETTINGS, *FIXED) if defaults else SETTINGS
        for option, metavar, kind, text, default in reversed(settings):
            shown = f"{text}  [default: {default}]" if defaults else text
            name = None if isinstance(kind, click.Choice) else metavar
            command = click.option(option, type=kind, metavar=name, help=shown)(command)
        return command

    return decorate


#: How a value is given of what has none by 0, however that is written.
_WRITTEN: dict[str, LiteralString] = {
    **dict.fromkeys(NONE_BY_0, "nullif({}::interval, '0')"),
    "max_pending": "nullif({}::bigint, 0)",
}


@topic.command(
    epilog="""\b
Example:
  inturn topic create orders --target sql:app.apply_order --max-attempts 10
  inturn topic create events --target http://b/commands --numbering given"""
)
@click.argument("name")
@_settings(defaults=True)
@pass_database
def create(database: Database, /, name: str, **settings: str | int | None) -> None:
    """Create a topic.

    If it exists already with the same settings, say so and succeed. An INTERVAL is
    written as in PostgreSQL: '500 ms', '2 minutes'. "Outside" means outside the
    database: over HTTP, or in a handler with outside=True.
    """
    given = {"name": name, **{key: value for key, value in settings.items() if value is not None}}
    arguments = sql.SQL(", ").join(
        sql.SQL("{} => " + _WRITTEN.get(key, "{}")).format(sql.Identifier(key), sql.Literal(value))
        for key, value in given.items()
    )
    with database.connect() as connection:
        _check_intervals(connection, given)
        created = connection.execute(
            sql.SQL("SELECT {}.create_topic({})").format(sql.Identifier(database.schema), arguments)
        ).fetchone()
    echo(f"topic {name} {'created' if created and created[0] else 'exists already'}")


@topic.command(
    "set",
    epilog="""\b
Example:
  inturn topic set orders --on-exhausted skip --reason 'ticket 99'""",
)
@click.argument("name", type=TOPIC)
@_settings(defaults=False)
@reason_option(required=False)
@operator_options_with("--wait", "topic")
@pass_database
def set_topic(
    database: Database, /, name: str, *, reason: str | None, operator: Operator, **settings: str | int | None
) -> None:
    """Change settings of a topic.

    Running appliers use the new settings within seconds.

    An INTERVAL is written as in PostgreSQL: '500 ms', '2 minutes'. "Outside" means
    outside the database. Who numbers the commands is fixed when the topic is created.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    if not given:
        raise click.UsageError("Give a setting to change.")
    with database.connect() as connection:
        _check_intervals(connection, given)
        arguments = {"topic": name, "reason": reason, **given}
        actions = operator.act(connection, database.schema, "set_topic", arguments)
    operator.report(actions, _changed)


def _changed(done: Recorded) -> str:
    before, after = done["before"], done["after"]

    def said(key: str, value: object) -> object:
        return NO_VALUE.get(key) if value is None else _yes_or_no(value)

    return ", ".join(
        f"{key} {said(key, before[key])} -> {said(key, after[key])}"
        for key in after
        if before[key] != after[key]
    )


_QUERY = """
SELECT name AS topic, target, max_attempts, backoff_base, backoff_cap, max_payload_bytes, batch_commands,
       on_exhausted, paused_at, paused_until, created_at, numbering, first_seq, max_ahead, gap_timeout, lease,
       max_in_flight, timeout, max_pending, retain, retain_idempotency, forget_idle_after,
       json_strings, target_owner
FROM {}.topic WHERE %(name)s::text IS NULL OR name = %(name)s ORDER BY name
"""


def _read(database: Database, name: str | None) -> list[Row]:
    with database.connect() as connection:
        if name is not None:
            require_topic(connection, database.schema, name)
        return fetch(connection, sql.SQL(_QUERY).format(sql.Identifier(database.schema)), {"name": name})


@topic.command(
    "list",
    epilog="""\b
Example:
  inturn topic list --json""",
)
@json_option
@pass_database
def list_topics(database: Database, *, as_json: bool) -> None:
    """List the topics with their targets and main settings.

    For all settings of one: inturn topic show NAME.
    """
    topics = _read(database, None)
    if as_json:
        print_json([_in_seconds(row) for row in topics])
    elif topics:
        numbers = any(row["numbering"] != "assigned" for row in topics)
        paused = any(row["paused_at"] for row in topics)
        print_table(
            [
                Column("topic", cut="middle", whole=True),
                Column("target", cut="middle", whole=True),
                Column("attempts", right=True),
                Column("then"),
                Column("backoff"),
                *([Column("numbers")] if numbers else []),
                *([Column("state")] if paused else []),
            ],
            [
                [
                    *_row(row),
                    *([row["numbering"]] if numbers else []),
                    *(["paused" if row["paused_at"] else ""] if paused else []),
                ]
                for row in topics
            ],
        )
    else:
        echo(no_topics(), err=True)


@topic.command(
    epilog="""\b
Example:
  inturn topic show orders""",
)
@click.argument("name", type=TOPIC)
@json_option
@pass_database
def show(database: Database, name: str, *, as_json: bool) -> None:
    """Show all settings of a topic."""
    (row,) = _read(database, name)
    with database.connect() as connection:
        grants = granted(connection, database.schema, name)
    if as_json:
        logins = {role: of_role.split(", ") if of_role else [] for role, of_role in grants}
        print_json({**_in_seconds(row), "granted": logins})
        return
    echo(f"topic    {row['topic']}")
    echo(f"created  {row['created_at'].astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC")
    if row["paused_at"]:
        until = row["paused_until"]
        ends = f"until {until.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if until else "until it is resumed"
        echo(f"paused   since {row['paused_at'].astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, {ends}")
    echo()
    settings = [option.removeprefix("--") for option, *_ in (*SETTINGS, *FIXED)]
    print_table(
        [Column("setting"), Column("value", cut="middle", whole=True)],
        [[setting, _value(row, setting.replace("-", "_"))] for setting in settings],
    )
    if any(of_role for _, of_role in grants):
        echo()
        print_table(
            [Column("granted as"), Column("to", cut="middle", whole=True)],
            [[role, of_role or f"every {role}"] for role, of_role in grants],
        )


def _value(row: Row, name: str) -> str:
    value = row[name]
    if value is None:
        return NO_VALUE[name]
    return _span(value) if name in INTERVALS else str(_yes_or_no(value))


def _yes_or_no(value: object) -> object:
    return {True: YES, False: NO}[value] if isinstance(value, bool) else value


def _in_seconds(topic: Row) -> Row:
    return {
        f"{key}_seconds" if key in INTERVALS else key: (
            value.total_seconds() if isinstance(value, timedelta) else value
        )
        for key, value in topic.items()
    }


def _row(topic: Row) -> list[str]:
    return [
        topic["topic"],
        topic["target"],
        str(topic["max_attempts"]),
        topic["on_exhausted"],
        f"{_span(topic['backoff_base'])} to {_span(topic['backoff_cap'])}",
    ]


def _check_intervals(connection: Connection[Any], settings: dict[str, Any]) -> None:
    """Make sure that the database can read every interval; whoever mistyped one of several learns which."""
    for name in INTERVALS:
        if name in settings:
            check_interval(connection, f"--{name.replace('_', '-')}", settings[name])


def _span(interval: timedelta) -> str:
    """Return a setting in its largest whole unit: 90 s is 90s, not 1m."""
    milliseconds = round(interval.total_seconds() * 1000)
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds >= length and milliseconds % length == 0:
            return f"{milliseconds // length}{unit}"
    return f"{milliseconds}ms"
