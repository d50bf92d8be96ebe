"""`inturn prune`: removes what need not be kept any more."""

from __future__ import annotations

import time
from typing import Any

import click
import psycopg
from psycopg import Connection, sql

from inturn.cli.advice import program
from inturn.cli.database import Database, pass_database
from inturn.cli.terminal.key_text import TOPIC
from inturn.cli.terminal.output import echo, json_option, print_json
from inturn.cli.terminal.seconds import Seconds
from inturn.cli.terminal.spans import refuse_interval

_PRUNE = "CALL {}.prune(%s, %s::interval, %s)"
#: Of commands, turns and forgotten keys; and whether all that may go is gone.
_NOTHING = (0, 0, 0, True)


@click.command(
    epilog="""\b
Example:
  inturn topic set orders --retain 30d && inturn prune
  inturn prune --topic orders --older-than 7d --max-seconds 60
  0 2 * * * inturn prune --max-seconds 3600 --quiet"""
)
@click.option("--topic", type=TOPIC, metavar="NAME", help="Only this topic, not all.")
@click.option(
    "--older-than",
    metavar="INTERVAL",
    help="Remove what was applied at least this long ago, whatever topics' retain says.",
)
@click.option(
    "--max-seconds",
    type=Seconds(min=0, min_open=True),
    help="Stop after this many seconds; the next prune goes on from there.",
)
@click.option("--quiet", is_flag=True, help="Print nothing if all that may go is gone, for cron.")
@json_option
@pass_database
def prune(
    database: Database,
    *,
    topic: str | None,
    older_than: str | None,
    max_seconds: float | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Remove commands that were applied or skipped, with their turns, once they are old enough.

    A topic's retain says how old: inturn topic set NAME --retain 30d. It never removes
    a pending command, a key's progress, or anything of a held or paused key. It removes
    whole keys that were idle for the topic's forget_idle_after.

    It removes a little at a time, so nobody waits for long. Run it at any time, from
    cron, several at once if you like. inturn apply --prune does the same while it has
    nothing to apply.
    """
    started_at = time.monotonic()
    with database.connect() as connection:
        call = sql.SQL(_PRUNE).format(sql.Identifier(database.schema))
        try:
            row = connection.execute(call, (topic, older_than, max_seconds)).fetchone() or _NOTHING
        except psycopg.DataError as error:
            raise refuse_interval(error, "--older-than", older_than) from None
        keeps_all = older_than is None and not _has_retain(connection, database.schema)
    if row[-1] and quiet and not keeps_all:
        return
    _print(row, time.monotonic() - started_at, keeps_all=keeps_all, as_json=as_json)


def _print(row: tuple[Any, ...], seconds: float, *, keeps_all: bool, as_json: bool) -> None:
    commands, turns, forgotten, done = row
    if as_json:
        counts = {"commands": commands, "turns": turns, "forgotten": forgotten}
        print_json(counts | {"done": done, "seconds": round(seconds, 3)})
        return
    line = f"pruned {_count(commands, 'command')} and {_count(turns, 'turn')}"
    if forgotten:
        line += f", forgot {_count(forgotten, 'key')}"
    line = f"{line} in {seconds:.1f} s" + ("" if done else "; the time was over: run it again")
    if keeps_all:
        line += f"; no topic has a retain, so all is kept: {program()} topic set NAME --retain 30d"
    echo(line)


def _has_retain(connection: Connection[Any], schema: str) -> bool:
    query = "SELECT FROM {}.topic WHERE retain IS NOT NULL LIMIT 1"
    return connection.execute(sql.SQL(query).format(sql.Identifier(schema))).fetchone() is not None


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
