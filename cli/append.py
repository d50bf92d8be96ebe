"""`inturn append`: one command, from a shell."""

from __future__ import annotations

import sys

import click
import psycopg
from psycopg import sql

from inturn.cli.database import Database, pass_database
from inturn.cli.output import json_option, print_json
from inturn.schema.errors import PayloadRefused

_MOST_BYTES = 64 * 1024 * 1024 + 1
_NO_JSON = "22P02"
# JSON, but not for jsonb: \u0000, a lone surrogate, too deep, too large.
_NOT_STORABLE = (_NO_JSON, "22P05", "22021", "54001", "54000", "22003")


@click.command(
    epilog="""\b
Example:
  inturn append orders order-42 insert '{"amount": 3}'
  inturn append orders order-42 import - < order-42.json"""
)
@click.argument("topic")
@click.argument("key")
@click.argument("name")
@click.argument("payload", default="{}")
@click.option("--idempotency-key", metavar="TEXT", help="The same again on the key appends nothing.")
@json_option
@pass_database
def append(
    database: Database,
    topic: str,
    key: str,
    name: str,
    payload: str,
    *,
    idempotency_key: str | None,
    as_json: bool,
) -> None:
    """Append a command to a key, and print its seq.

    PAYLOAD is JSON, {} if not given, - to read it from standard input. Before a
    KEY that begins with a dash, put -- .
    """
    # No topic takes more; what never ends is not read to the end.
    text = sys.stdin.buffer.read(_MOST_BYTES).decode() if payload == "-" else payload
    with database.connect() as connection:
        try:
            # As text, so that every number arrives as it was written.
            row = connection.execute(
                sql.SQL("SELECT {}.append(%s, %s, %s, %s::jsonb, %s)").format(
                    sql.Identifier(database.schema)
                ),
                (topic, key, name, text, idempotency_key),
            ).fetchone()
        except psycopg.Error as error:
            if error.sqlstate in _NOT_STORABLE:
                raise _refused(error, topic, key) from error
            raise
    seq = row[0] if row else None
    if as_json:
        print_json({"topic": topic, "key": key, "seq": seq})
    else:
        click.echo(seq)


def _refused(error: psycopg.Error, topic: str, key: str) -> PayloadRefused:
    why = error.diag.message_detail or error.diag.message_primary or str(error)
    return PayloadRefused(
        f"the payload is no JSON that PostgreSQL can store: {why}",
        hint="""In a shell it takes quotes: '{"amount": 3}'""" if error.sqlstate == _NO_JSON else "",
        topic=topic,
        key=key,
    )
