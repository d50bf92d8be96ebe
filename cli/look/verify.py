"""`inturn verify`: the promises, recomputed from what is stored."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import click
from psycopg import Connection, sql
from psycopg.rows import dict_row

from inturn.cli.advice import advised
from inturn.cli.database import Database, pass_database
from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode
from inturn.cli.look.topics import require_topic, say_hidden_topics
from inturn.cli.terminal.bar import Bar
from inturn.cli.terminal.key_text import KEY, TOPIC, resolve, shown
from inturn.cli.terminal.output import echo, echo_all, first_line, json_option, print_json
from inturn.schema.privileges import wrong

_COMMANDS_A_SLICE = 50_000
# What is counted, and where it is when a key is asked for.
_COUNTED = {
    "keys": "key_sequence WHERE true",
    "commands": "command_log WHERE true",
    "turns": "turn WHERE outcome <> 'idle'",
}
_COUNT = "SELECT count(*) AS n FROM {}.TABLE AND topic = %s AND key = %s"

# Of a row: what is printed first, and what its violation says already.
_FIRST = ("seq", "epoch", "from_seq", "to_seq", "outcome", "applied_seq", "drained")
_SAID = ("table", "topic", "key")


@dataclass
class _Work:
    """What was verified, and what was found."""

    keys: int = 0
    commands: int = 0
    turns: int = 0
    found: int = 0
    violations: list[dict[str, Any]] = field(default_factory=list)


@click.command(
    epilog="""\b
Exit codes: 0 nothing found; 8 a promise is broken; 4 database unreachable.

\b
Example:
  inturn verify
  inturn verify --topic orders --key order-42 --json
  0 6 * * 0 inturn verify --quiet"""
)
@click.option("--topic", type=TOPIC, metavar="NAME", help="Only this topic.")
@click.option("--key", type=KEY, metavar="KEY", help="Only this key.")
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    default=20,
    show_default=True,
    help="Print at most N violations; all are counted.",
)
@click.option("--quiet", is_flag=True, help="Print nothing if nothing is found, for cron.")
@json_option
@pass_database
def verify(
    database: Database, *, topic: str | None, key: str | None, limit: int, quiet: bool, as_json: bool
) -> int:
    """Recompute the promises from what is stored, and print what breaks them.

    Checks that numbers have no gaps, that no key is beyond its last command, that
    every number was applied or skipped exactly once, that no epoch was used twice,
    and that nothing is pending on an idle key. It only reads, some keys at a time,
    each on one snapshot: you may run it at any time. It warns while privileges are
    not as they must be, as after a restore: see inturn upgrade.
    """
    started_at = time.monotonic()
    work = _Work()
    with database.connect() as connection:
        warnings = _warnings(wrong(connection, database.schema))
        if topic is not None:
            require_topic(connection, database.schema, topic)
        say_hidden_topics(connection, database.schema, topic)
        reader = _Reader(connection, database.schema)
        topics = [topic] if topic is not None else reader.topics()
        if key is None:
            with Bar("verifying", reader.estimate(topic), shown=sys.stderr.isatty()) as bar:
                for each in topics:
                    for found in reader.slices(each, work):
                        _take(work, found, limit)
                        bar.update(work.commands)
        else:
            key = resolve(connection, database.schema, key, topic)
            for each in topics:
                _take(work, reader.key(each, key, work), limit)
            if not work.keys and not work.found:
                raise Failure(f"there is no key {shown(key)}", hint="List keys with: inturn keys")
    if work.found or warnings or not quiet:
        say = _print_json if as_json else _print
        say(work, warnings, time.monotonic() - started_at)
    return ExitCode.VIOLATED if work.found else ExitCode.OK


def _warnings(statements: list[str]) -> list[str]:
    """Return what is said of privileges that are not as they must be, as after a restore."""
    if not statements:
        return []
    count = len(statements)
    what = "1 privilege is not as it" if count == 1 else f"{count} privileges are not as they"
    todo = advised("run inturn upgrade, and see inturn doctor")
    return [f"{what} must be: {todo}. The first: {statements[0]}"]


class _Reader:
    """Reads slice by slice, each in a transaction of its own that writes nothing."""

    def __init__(self, connection: Connection[Any], schema: str) -> None:
        self._connection = connection
        self._schema = sql.Identifier(schema)

    def topics(self) -> list[str]:
        """Return the topics that are there, and those that rows are left of."""
        return [row["topic"] for row in self._rows("SELECT * FROM {}.verify_topics() AS t (topic)")]

    def estimate(self, topic: str | None) -> int:
        """Return about how many commands there are, as the planner reckons: counting them takes long."""
        where = " WHERE topic = %s" if topic is not None else ""
        (row,) = self._rows("EXPLAIN (FORMAT JSON) SELECT FROM {}.command_log" + where, topic)
        return int(row["QUERY PLAN"][0]["Plan"]["Plan Rows"])

    def slices(self, topic: str, work: _Work) -> Iterator[list[dict[str, Any]]]:
        """Verify a topic; yield what is found, slice by slice, and count what was read."""
        from_key: str | None = ""
        while from_key is not None:
            self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            (slice_,) = self._rows(
                "SELECT * FROM {}.verify_slice(%s, %s, %s)", topic, from_key, _COMMANDS_A_SLICE
            )
            found = self._rows("SELECT * FROM {}.verify(%s, %s, %s)", topic, from_key, slice_["to_key"])
            self._connection.execute("COMMIT")
            for name in _COUNTED:
                setattr(work, name, getattr(work, name) + slice_[name])
            yield found
            from_key = slice_["next_key"]

    def key(self, topic: str, key: str, work: _Work) -> list[dict[str, Any]]:
        """Verify a key; count what was read."""
        self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for name, table in _COUNTED.items():
            (row,) = self._rows(_COUNT.replace("TABLE", table), topic, key)
            setattr(work, name, getattr(work, name) + row["n"])
        found = self._rows("SELECT * FROM {}.verify(%s, %s, %s)", topic, key, key)
        self._connection.execute("COMMIT")
        return found

    def _rows(self, query: str, *parameters: object) -> list[dict[str, Any]]:
        cursor = self._connection.cursor(row_factory=dict_row)
        given = parameters if any(p is not None for p in parameters) else None
        return cursor.execute(sql.SQL(query).format(*[self._schema] * query.count("{}")), given).fetchall()


def _take(work: _Work, found: list[dict[str, Any]], limit: int) -> None:
    work.found += len(found)
    work.violations += found[: max(0, limit - len(work.violations))]


def _print_json(work: _Work, warnings: list[str], seconds: float) -> None:
    counted = {name: getattr(work, name) for name in _COUNTED}
    of_work = {"found": work.found, "violations": work.violations, "warnings": warnings}
    print_json({**counted, "seconds": round(seconds, 3), **of_work})


def _print(work: _Work, warnings: list[str], seconds: float) -> None:
    echo_all((f"warning: {warning}" for warning in warnings), err=True)
    for violation in work.violations:
        where = f"topic {violation['topic']}"
        if violation["key"]:
            where += f", key {shown(violation['key'])}"
        echo(f"{violation['violation']}: {where}: {violation['says']}")
        for row in violation["rows"]:
            echo(f"  {row['table']:<15} {_facts(row)}")
    if work.found > len(work.violations):
        echo(f"... and {work.found - len(work.violations):,} more; --limit N lists them")
    counted = ", ".join(_count(getattr(work, name), name[:-1]) for name in _COUNTED)
    result = _count(work.found, "violation") if work.found else "no violation"
    echo(f"verified {counted} in {seconds:.1f} s: {result}")


def _facts(row: dict[str, Any]) -> str:
    names = [*(name for name in _FIRST if name in row), *sorted(row.keys() - {*_FIRST, *_SAID})]
    return " ".join(f"{name}={_fact(row[name])}" for name in names)


def _fact(value: object) -> str:
    text = first_line(str(value))
    return f'"{text}"' if " " in text else text


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
