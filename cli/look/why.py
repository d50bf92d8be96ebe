"""`inturn why`: the one cause why a key does not move, and what to do about it."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import click
from psycopg import Connection, sql
from rich.console import Console
from rich.text import Text

from inturn.cli.advice import advised
from inturn.cli.database import Database, pass_database
from inturn.cli.exit_codes import ExitCode
from inturn.cli.look.sessions import say_what_is_hidden
from inturn.cli.look.topics import say_hidden_topics
from inturn.cli.terminal.key_text import KEY, TOPIC, quoted, resolve, shown, shown_topic
from inturn.cli.terminal.output import age, echo, escape, json_option, print_json, terminal_width
from inturn.cli.terminal.rows import fetch, load_time
from inturn.schema.advice import one_line

#: What each cause is called in the first line; its code in --json is the one of the function why.
TITLES = {
    "no_such_key": "no such key",
    "applying": "being applied",
    "row_locked": "locked by another session",
    "held": "held",
    "leased": "leased",
    "waiting": "waiting for a number",
    "paused": "paused",
    "topic_paused": "topic paused",
    "appending": "being appended to",
    "nothing_pending": "nothing pending",
    "not_numbered": "has no number yet",
    "target_refused": "target refused",
    "target_down": "target does not answer",
    "retrying": "retrying",
    "schema_mismatch": "schema does not fit the appliers",
    "no_applier": "no applier",
    "queued": "waiting for its turn",
    "broken": "broken",
}

_WIDEST = 100
_INDENT = "  "
_PLACEHOLDER = re.compile(r"(--key |--topic )?\{(key|topic)\}")


@click.command(
    epilog="""\b
Example:
  inturn why order-42
  inturn why order-42 --topic orders --json"""
)
@click.argument("key", type=KEY)
@click.option(
    "--topic",
    type=TOPIC,
    metavar="NAME",
    help="Only in this topic; the default is every topic that has the key.",
)
@json_option
@pass_database
def why(database: Database, key: str, *, topic: str | None, as_json: bool) -> int:
    """Say why a key does not move, since when, and what to do next.

    Names one cause, the first obstacle that it finds. The exit code is 1 if there is
    no such key.
    """
    with database.connect() as connection:
        key = resolve(connection, database.schema, key, topic)
        found = _explained(connection, database.schema, topic, key)
        clock = connection.execute("SELECT clock_timestamp()").fetchone()
        say_what_is_hidden(connection, database.schema)
        say_hidden_topics(connection, database.schema, topic)
    if as_json:
        print_json(
            [{**each, "to_do": ["  # ".join(filter(None, line)) for line in _to_do(each)]} for each in found]
        )
    else:
        for number, each in enumerate(found):
            if number:
                echo()
            _print(each, clock[0] if clock else None)
    return ExitCode.ERROR if any(each["cause"] == "no_such_key" for each in found) else ExitCode.OK


def _explained(connection: Connection[Any], schema: str, topic: str | None, key: str) -> list[dict[str, Any]]:
    query = "SELECT topic, key, cause, since, says, to_do, details FROM {}.why(%s::text, %s::text)"
    with connection.transaction():
        # The rows that it locks for a moment are in the log: its COMMIT would wait for a synchronous standby,
        # which may be why the key does not move.
        connection.execute("SELECT pg_catalog.set_config('synchronous_commit', 'off', true)")
        return fetch(connection, sql.SQL(query).format(sql.Identifier(schema)), (topic, key))


def _to_do(each: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the next commands to type, ready for a shell, each with a remark or none."""
    lines = [line.partition("  # ") for line in each["to_do"].splitlines()]
    near = [(found["topic"], found["key"]) for found in each["details"].get("near", [])]
    return [
        *((fill(command, each["topic"] or "", each["key"]), remark) for command, _, remark in lines),
        *((fill("inturn why --topic {topic} {key}", *found), "") for found in near),
    ]


def fill(line: str, topic: str, key: str) -> str:
    """Return a line with the topic and the key in their places; what they hold is not looked at again."""

    def put(place: re.Match[str]) -> str:
        name, word = (key, shown(key)) if place[2] == "key" else (topic, shown_topic(topic))
        return (place[1] or ("-- " if name.startswith("-") else "")) + word

    return _PLACEHOLDER.sub(put, advised(line))


def _print(each: dict[str, Any], now: datetime | None) -> None:
    width = None if (cells := terminal_width()) is None else min(cells, _WIDEST)
    of_topic = f" of topic {quoted(escape(each['topic']))}" if each["topic"] else ""
    echo(f"{shown(each['key'])}{of_topic}: {_title(each, now)}")
    says = escape(one_line(each["says"]).rstrip(".")) + "."
    for line in _wrapped(says, width).splitlines():
        echo(line)
    for command, remark in _to_do(each):
        line = f"{_INDENT}$ {command}" + (f"  # {remark}" if remark else "")
        if width is not None and remark and len(line) > width:
            echo(f"{_INDENT}# {remark}:")
            line = f"{_INDENT}$ {command}"
        echo(line)


def _title(each: dict[str, Any], now: datetime | None) -> str:
    title: str = TITLES.get(each["cause"], each["cause"])
    if now is not None and each["since"] is not None:
        title += f" for {age((now - each['since']).total_seconds())}"
    until = load_time(each["details"].get("until") or "infinity")
    if now is not None and until is not None:
        ahead = "again in" if each["cause"] == "retrying" else "for another"
        title += f", {ahead} {age((until - now).total_seconds())}"
    return title


def _wrapped(text: str, width: int | None) -> str:
    if width is None:
        return _INDENT + text
    lines = Text(text).wrap(Console(), width - len(_INDENT))
    return "\n".join(f"{_INDENT}{line.plain.rstrip()}" for line in lines)
