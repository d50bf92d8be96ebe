"""`inturn show`: one key, its commands and its turns."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click
from psycopg import Connection, sql
from psycopg.rows import dict_row

from inturn.cli.database import Database, pass_database
from inturn.cli.errors import Failure
from inturn.cli.keys import require_topic
from inturn.cli.output import (
    Column,
    age,
    duration,
    escape,
    first_line,
    json_option,
    load_payload,
    print_json,
    print_table,
)

_ERROR_LINES = 12
_PAYLOAD_CHARACTERS = 200

# The key's rows are found by their primary keys, topic by topic.
_KEYS = """
SELECT c.topic, c.key,
       CASE WHEN c.held_at IS NOT NULL THEN 'held'
            WHEN c.ready_at IS NULL THEN 'idle'
            WHEN c.attempts > 0 THEN 'retrying'
            ELSE 'ready' END AS state,
       c.applied_seq, l.last_seq, l.last_seq - c.applied_seq AS pending, o.created_at AS oldest_pending_at,
       c.epoch, c.attempts, t.max_attempts, c.ready_at, c.failed_at, c.held_at, c.last_error,
       clock_timestamp() AS now
FROM {schema}.topic t
JOIN {schema}.key_cursor c ON c.topic = t.name
CROSS JOIN LATERAL (
    SELECT greatest(c.applied_seq, (SELECT max(l.seq) FROM {schema}.command_log l
                                    WHERE l.topic = c.topic AND l.key = c.key)) AS last_seq) l
LEFT JOIN {schema}.command_log o ON o.topic = c.topic AND o.key = c.key AND o.seq = c.applied_seq + 1
WHERE c.key = %(key)s AND (%(topic)s::text IS NULL OR t.name = %(topic)s)
ORDER BY c.topic
"""

_COMMANDS = """
SELECT seq, name, payload::text AS payload, idempotency_key, created_at FROM {schema}.command_log
WHERE topic = %(topic)s AND key = %(key)s
  AND seq > %(applied_seq)s - %(limit)s AND seq <= %(applied_seq)s + %(limit)s ORDER BY seq
"""

_TURNS = """
SELECT epoch, from_seq, to_seq, outcome, applier, started_at, finished_at, error FROM {schema}.turn
WHERE topic = %(topic)s AND key = %(key)s ORDER BY epoch DESC LIMIT %(limit)s
"""


@click.command(
    epilog="""\b
Example:
  inturn show order-42
  inturn show order-42 --topic orders --limit 20 --json"""
)
@click.argument("key")
@click.option("--topic", metavar="NAME", help="In this topic; else in every topic that has the key.")
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    default=5,
    show_default=True,
    help="The last N applied commands, the next N, the last N turns.",
)
@json_option
@pass_database
def show(database: Database, key: str, *, topic: str | None, limit: int, as_json: bool) -> None:
    """Show where a key stands, its commands and its turns."""
    with database.connect() as connection:
        if topic is not None:
            require_topic(connection, database.schema, topic)
        found = _read(connection, database.schema, key, topic, limit)
    if not found:
        where = f"in topic '{topic}'" if topic is not None else "in any topic"
        raise Failure(f"there is no key '{key}' {where}", hint="List keys with: inturn keys")
    if as_json:
        print_json([_document(each) for each in found])
        return
    for number, each in enumerate(found):
        if number:
            click.echo()
        _print(each)


def _read(
    connection: Connection[Any], schema: str, key: str, topic: str | None, limit: int
) -> list[dict[str, Any]]:
    def rows(query: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        composed = sql.SQL(query).format(schema=sql.Identifier(schema))
        return connection.cursor(row_factory=dict_row).execute(composed, parameters).fetchall()

    # One snapshot, or the commands might not fit the cursor.
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    found = rows(_KEYS, {"key": key, "topic": topic})
    for each in found:
        parameters = {**each, "limit": limit}
        each["commands"] = [
            {**row, "state": _command_state(row["seq"], each)} for row in rows(_COMMANDS, parameters)
        ]
        each["turns"] = rows(_TURNS, parameters)
    connection.execute("COMMIT")
    return found


def _command_state(seq: int, key: dict[str, Any]) -> str:
    if seq <= key["applied_seq"]:
        return "applied"
    if seq > key["applied_seq"] + 1:
        return "pending"
    return "held" if key["held_at"] else "retrying" if key["attempts"] else "next"


def _print(key: dict[str, Any]) -> None:
    now = key["now"]
    click.echo(f"topic    {escape(key['topic'])}")
    click.echo(f"key      {escape(key['key'])}")
    click.echo(f"state    {_state(key)}")
    lag = f", {key['pending']} pending" if key["pending"] else ""
    if key["oldest_pending_at"]:
        lag += f", the next for {_since(key['oldest_pending_at'], now)}"
    click.echo(f"applied  {key['applied_seq']} of {key['last_seq']}{lag}")
    if key["last_error"]:
        lines = key["last_error"].strip().splitlines()
        shown = [
            *lines[:_ERROR_LINES],
            *(["... (whole with --json)"] if lines[_ERROR_LINES:] else []),
        ]
        click.echo("error    " + "\n         ".join(map(escape, shown)))
    if key["commands"]:
        click.echo()
        _print_commands(key, now)
    if key["turns"]:
        click.echo()
        _print_turns(key, now)


def _document(key: dict[str, Any]) -> dict[str, Any]:
    commands = [{**row, "payload": load_payload(row["payload"])} for row in key["commands"]]
    return {name: value for name, value in key.items() if name != "now"} | {"commands": commands}


def _state(key: dict[str, Any]) -> str:
    now, attempts = key["now"], f"{key['attempts']} of {key['max_attempts']} attempts"
    match key["state"]:
        case "held":
            return f"held for {_since(key['held_at'], now)}, after {attempts}"
        case "retrying":
            wait = (key["ready_at"] - now).total_seconds()
            return f"retrying {'in ' + age(wait) if wait > 0 else 'now'}, after {attempts}"
    return str(key["state"])


def _since(time: datetime, now: datetime) -> str:
    return age((now - time).total_seconds())


def _print_commands(key: dict[str, Any], now: datetime) -> None:
    print_table(
        [
            Column("seq", right=True),
            Column("command", cut="middle"),
            Column("state"),
            Column("appended", right=True),
            Column("payload", cut="end"),
        ],
        [
            [
                str(command["seq"]),
                command["name"],
                command["state"],
                _since(command["created_at"], now) + " ago",
                _start(command["payload"]),
            ]
            for command in key["commands"]
        ],
    )


def _start(payload: str) -> str:
    return payload if len(payload) <= _PAYLOAD_CHARACTERS else payload[:_PAYLOAD_CHARACTERS] + "…"


def _print_turns(key: dict[str, Any], now: datetime) -> None:
    print_table(
        [
            Column("turn", right=True),
            Column("applied", right=True),
            Column("outcome"),
            Column("applier", cut="middle"),
            Column("started", right=True),
            Column("took", right=True),
        ],
        [_turn(turn, now) for turn in key["turns"]],
        [
            f"{turn['to_seq'] + 1} failed: {first_line(turn['error'])}" if turn["error"] else ""
            for turn in key["turns"]
        ],
    )


def _turn(turn: dict[str, Any], now: datetime) -> list[str]:
    first, last = turn["from_seq"], turn["to_seq"]
    return [
        str(turn["epoch"]),
        "" if last < first else str(first) if last == first else f"{first}-{last}",
        turn["outcome"],
        turn["applier"],
        _since(turn["started_at"], now) + " ago",
        duration((turn["finished_at"] - turn["started_at"]).total_seconds()),
    ]
