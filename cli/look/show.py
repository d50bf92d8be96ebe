"""`inturn show`: one key, its commands, its turns, and what operators did to it."""

from __future__ import annotations

from typing import Any

import click

from inturn.cli.database import Database, pass_database
from inturn.cli.errors import Failure
from inturn.cli.look.print_key import PAYLOAD_CHARACTERS, print_key
from inturn.cli.look.read_key import read_key
from inturn.cli.look.topics import require_sight, say_hidden_topics
from inturn.cli.terminal.key_text import KEY, TOPIC, resolve, shown, to_paste
from inturn.cli.terminal.output import echo, json_option, load_payload, print_json
from inturn.cli.terminal.rows import Row


@click.command(
    epilog="""\b
Example:
  inturn show order-42
  inturn show order-42 --topic orders --limit 20 --error --payload"""
)
@click.argument("key", type=KEY)
@click.option(
    "--topic", type=TOPIC, metavar="NAME", help="Only this topic; otherwise every topic that has the key."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    default=5,
    show_default=True,
    help="The last N commands applied, the next N, the last N turns and actions.",
)
@click.option("--error", "errors", is_flag=True, help="Print errors whole, not their first line.")
@click.option(
    "--payload/--no-payload",
    "payload",
    default=None,
    help="Print payloads whole, or not at all; otherwise their beginning.",
)
@json_option
@pass_database
def show(
    database: Database,
    key: str,
    *,
    topic: str | None,
    limit: int,
    errors: bool,
    payload: bool | None,
    as_json: bool,
) -> None:
    """Show where a key stands, its commands, its turns and what operators did.

    The commands are those around the next one; turns and actions come newest first.
    """
    most = 0 if payload is False else None if payload or as_json else PAYLOAD_CHARACTERS + 1
    with database.connect() as connection:
        if topic is not None:
            require_sight(connection, database.schema, topic)
        key = resolve(connection, database.schema, key, topic)
        found = read_key(connection, database.schema, key, topic, limit, most)
        say_hidden_topics(connection, database.schema, topic)
    if not found:
        where = f"in topic '{topic}'" if topic is not None else "in any topic"
        raise Failure(
            f"there is no key {shown(key)} {where}",
            hint=f"List keys with: inturn keys; or ask: {to_paste('why', key)}",
        )
    if as_json:
        print_json([_document(each, payloads=payload is not False) for each in found])
        return
    for number, each in enumerate(found):
        if number:
            echo()
        print_key(each, errors=errors, payload=payload)


def _document(key: Row, *, payloads: bool) -> Row:
    def facts(text: str | None) -> Any:
        """Return what an action recorded, without a payload that nobody asked for."""
        found = load_payload(text) if text is not None else None
        return (
            found
            if payloads or not isinstance(found, dict)
            else {k: found[k] for k in found if k != "payload"}
        )

    commands = []
    for row in key["commands"]:
        command = {name: value for name, value in row.items() if payloads or not name.endswith("payload")}
        for name in ("payload", "original_payload", "merged_payload"):
            if command.get(name) is not None:
                command[name] = load_payload(command[name])
        commands.append(command)
    timeline = [
        {**row, "before": facts(row["before"]), "after": facts(row["after"])} for row in key["timeline"]
    ]
    document = {name: value for name, value in key.items() if name not in ("now", "pauses")}
    return document | {
        "pause": key["pauses"].get(False) if key["paused_at"] else None,
        "topic_pause": key["pauses"].get(True) if key["topic_paused_at"] else None,
        "commands": commands,
        "timeline": timeline,
    }
