"""`inturn append`: one command, from a shell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
import psycopg
from psycopg import sql

from inturn.cli.database import Database, pass_database
from inturn.cli.errors import Failure, explain
from inturn.cli.exit_codes import ExitCode
from inturn.cli.terminal.key_text import TOPIC
from inturn.cli.terminal.output import echo, json_option, print_json
from inturn.cli.terminal.payload import read_payload, storable


@click.command(
    epilog="""\b
Example:
  inturn append orders order-42 insert '{"amount": 3}'
  inturn append orders order-42 import - < order-42.json
  inturn append events order-42 insert '{"amount": 3}' --seq 17"""
)
@click.argument("topic", type=TOPIC)
@click.argument("key")
@click.argument("name")
@click.argument("payload", default="{}")
@click.option("--idempotency-key", metavar="TEXT", help="Repeating it on the key appends nothing.")
@click.option(
    "--seq",
    type=click.IntRange(0, 2**63 - 1),
    metavar="N",
    help="Its number, in a topic whose callers number.",
)
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
    seq: int | None,
    as_json: bool,
) -> None:
    """Append a command to a key, and print its seq.

    In a topic that numbers on arrival the command has no seq yet, and nothing is
    printed.

    PAYLOAD is JSON; the default is {}, and - reads it from standard input. Put --
    before a KEY that begins with a dash. With --seq you may repeat the append: the
    same number with the same content is appended only once.
    """
    text = read_payload(payload)
    repeatable = seq is not None or idempotency_key is not None
    with database.connect() as connection, _doubtful(repeatable), storable(topic, key):
        # As text, so that every number arrives as it was written.
        row = connection.execute(
            sql.SQL("SELECT {}.append(%s, %s, %s, %s::jsonb, %s, %s::bigint)").format(
                sql.Identifier(database.schema)
            ),
            (topic, key, name, text, idempotency_key, seq),
        ).fetchone()
    seq = row[0] if row else None
    if as_json:
        print_json({"topic": topic, "key": key, "seq": seq})
    elif seq is not None:
        echo(seq)


@contextmanager
def _doubtful(repeatable: bool) -> Iterator[None]:
    """Say of a connection that is lost in the block that nobody knows what became of the command.

    Raises:
        Failure: it was lost.
    """
    try:
        yield
    except psycopg.OperationalError as error:
        line, code = explain(error)
        if code != ExitCode.UNREACHABLE:
            raise
        hint = (
            "Repeat it as it is: it is appended once"
            if repeatable
            else "Look with inturn show before you repeat it, which may append it a second time;"
            " with --idempotency-key it cannot"
        )
        what = "whether the command was appended is not known"
        raise Failure(f"{line.partition('. ')[0]}; {what}", hint=hint, code=code) from error
