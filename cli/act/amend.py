"""`inturn amend`: a pending command is changed, by option or in an editor."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click
from psycopg import Connection, sql

from inturn.cli.act.editor import edited
from inturn.cli.act.operator import (
    Operator,
    Recorded,
    find_key,
    operator_options,
    reason_option,
    topic_option,
)
from inturn.cli.database import Database, pass_database
from inturn.cli.terminal.key_text import KEY, to_paste
from inturn.cli.terminal.payload import read_payload, storable
from inturn.cli.terminal.whole import BIGINT


@click.command(
    epilog="""\b
Example:
  inturn amend order-42 17 --edit --reason 'wrong currency, ticket 99'
  inturn amend order-42 17 --payload '{"amount": 3}' --reason 'ticket 99'"""
)
@click.argument("key", type=KEY)
@click.argument("seq", type=BIGINT)
@topic_option
@click.option("--payload", metavar="JSON", help="The new payload; - reads it from standard input.")
@click.option("--edit", is_flag=True, help="Edit the payload in $VISUAL or $EDITOR.")
@click.option("--name", metavar="NAME", help="The command's new name.")
@reason_option(required=True)
@operator_options
@pass_database
def amend(
    database: Database,
    /,
    key: str,
    seq: int,
    *,
    topic: str | None,
    payload: str | None,
    edit: bool,
    name: str | None,
    reason: str,
    operator: Operator,
) -> None:
    """Change the payload or the name of a pending command.

    The original stays readable: inturn show KEY --payload. A held key stays held
    until it is retried.
    """
    if edit and payload is not None:
        raise click.UsageError("Give --payload or --edit, not both.")
    if not edit and payload is None and name is None:
        raise click.UsageError("Give --payload, --edit or --name.")
    with database.connect() as connection:
        found_topic, found_key = find_key(connection, database, key, topic)
        place = {"topic": found_topic, "key": found_key}
        was = _payload(connection, database.schema, found_topic, found_key, seq)
        new = _new_payload(connection, place, payload, was if edit else None, keep=operator.dry_run)
        with new as text, storable(**place):
            # was: a change that somebody makes meanwhile is not overwritten.
            arguments = {"seq": seq, "reason": reason, "name": name, "payload": text, "was": was}
            recorded = operator.act(connection, database.schema, "amend", {**place, **arguments})
        held = _is_held(connection, database.schema, found_topic, found_key)
    operator.report(recorded, lambda done: _amended(done, held=held))


def _payload(connection: Connection[Any], schema: str, topic: str, key: str, seq: int) -> str | None:
    """Return the command's payload, laid out to be read; None when there is no such command."""
    row = connection.execute(
        sql.SQL(
            "SELECT jsonb_pretty(payload) FROM {}.command_log WHERE topic = %s AND key = %s AND seq = %s"
        ).format(sql.Identifier(schema)),
        (topic, key, seq),
    ).fetchone()
    return None if row is None else str(row[0])


def _new_payload(
    connection: Connection[Any], place: dict[str, str], typed: str | None, edit: str | None, *, keep: bool
) -> AbstractContextManager[str | None]:
    """Return what gives the new payload: what was typed, or what an editor makes of the one that is there."""

    def check(text: str) -> None:
        with storable(**place):
            connection.execute("SELECT %s::jsonb", (text,))

    if edit is not None:
        return edited(edit, check, keep=keep)
    return nullcontext(None if typed is None else read_payload(typed))


def _is_held(connection: Connection[Any], schema: str, topic: str, key: str) -> bool:
    row = connection.execute(
        sql.SQL("SELECT held_at IS NOT NULL FROM {}.key_cursor WHERE topic = %s AND key = %s").format(
            sql.Identifier(schema)
        ),
        (topic, key),
    ).fetchone()
    return row is not None and bool(row[0])


def _amended(done: Recorded, *, held: bool) -> str:
    line = f"command {done['seq']} is amended"
    if not held:
        return line
    return f"{line}; the key stays held until: {to_paste('retry', done['key'], done['topic'])}"
