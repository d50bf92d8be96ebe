"""`inturn keys`: where the keys stand, the worst first."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import click
import psycopg
from psycopg import Connection, sql
from psycopg.rows import dict_row

from inturn.cli.database import Database, pass_database
from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode
from inturn.cli.key_text import TOPIC, shown
from inturn.cli.output import Column, age, first_line, json_option, print_json, table_lines
from inturn.schema.errors import UnknownTopic

_STATES = ("held", "waiting", "retrying", "paused", "leased", "ready", "idle")
_NO_INTERVAL = ("22007", "22008", "22015")


@dataclass(frozen=True)
class _Wanted:
    """What to list."""

    topic: str | None
    state: str | None
    limit: int
    like: str | None
    older_than: str | None
    lagging: int | None
    sort: str | None

    @property
    def filtered(self) -> bool:
        return any(f is not None for f in (self.topic, self.state, self.like, self.older_than, self.lagging))


@dataclass
class _Listing:
    """What was found, of which `limit` keys are listed, and when."""

    limit: int
    found: list[dict[str, Any]]
    now: datetime
    warnings: list[str] = field(default_factory=list)

    @property
    def keys(self) -> list[dict[str, Any]]:
        return self.found[: self.limit]

    @property
    def remarks(self) -> list[str]:
        more = [f"there are more than {self.limit}; see them with --limit"]
        return [f"inturn: {text}" for text in self.warnings + more * (len(self.found) > self.limit)]


@click.command(
    epilog="""\b
Example:
  inturn keys --topic orders --held --retrying
  inturn keys --older-than 10m --check || echo 'keys stand still'"""
)
@click.option("--held", is_flag=True, help="Keys whose next command failed for good.")
@click.option("--waiting", is_flag=True, help="That wait for a number that nobody has appended.")
@click.option("--retrying", is_flag=True, help="Whose next command failed, and is tried again.")
@click.option("--paused", is_flag=True, help="That an operator keeps standing still.")
@click.option("--leased", is_flag=True, help="That an applier works on by lease.")
@click.option("--ready", is_flag=True, help="That have commands to apply.")
@click.option("--idle", is_flag=True, help="With everything applied.")
@click.option("--state", type=click.Choice(_STATES), hidden=True)
@click.option(
    "--lagging",
    type=click.IntRange(min=1),
    is_flag=False,
    flag_value=100,
    metavar="[N]",
    help="With N commands pending or more; 100 if no N is given.",
)
@click.option("--older-than", metavar="TIME", help="Whose next command has waited so long: 90s, 10m, 2h, 1d.")
@click.option("--topic", type=TOPIC, metavar="NAME", help="Only this topic's.")
@click.option("--like", metavar="PATTERN", help="Whose key matches: % is any text, _ one character.")
@click.option(
    "--sort", type=click.Choice(["lag", "age", "attempts"]), help="The greatest first; else the worst state."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    default=50,
    show_default=True,
    help="List at most N.",
)
@click.option("--check", is_flag=True, help="Exit with 7 if there are such keys; say nothing if not.")
@click.option(
    "--watch",
    type=click.FloatRange(min=0.1),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="List again every 2 seconds, or so many, until Ctrl-C.",
)
@json_option
@pass_database
def keys(
    database: Database,
    /,
    *,
    state: str | None,
    topic: str | None,
    like: str | None,
    older_than: str | None,
    lagging: int | None,
    sort: str | None,
    limit: int,
    check: bool,
    watch: float | None,
    as_json: bool,
    **states: bool,
) -> int:
    """List keys and where they stand, the worst first.

    Several states: keys in any of them. lag counts the commands not applied, age
    is how long the next of them has waited, or the first one there of a key that
    waits for a number. What is ready or retrying in a paused topic is listed as
    `topic paused`. Keys are printed so that a shell takes them back; before one
    that begins with a dash, put -- .
    """
    chosen = [name for name in _STATES if states[name] or name == state]
    wanted = _Wanted(topic, ",".join(chosen) or None, limit, like, older_than, lagging, sort)
    if check and not (chosen or lagging or older_than):
        raise click.UsageError("--check needs --held, another state, --lagging or --older-than.")
    if watch and (check or as_json or not sys.stdout.isatty()):
        raise click.UsageError("--watch needs a terminal, and goes neither with --json nor with --check.")
    with database.connect() as connection:
        if topic is not None:
            require_topic(connection, database.schema, topic)
        if watch:
            return _watch(connection, database.schema, wanted, watch)
        listing = _list(connection, database.schema, wanted)
    if as_json:
        print_json(listing.keys)
    elif listing.found:
        click.echo("\n".join(_lines(listing)))
    elif not check:
        click.echo("inturn: no such keys" if wanted.filtered else "inturn: no keys yet", err=True)
    for remark in listing.remarks:
        click.echo(remark, err=True)
    return ExitCode.FOUND if check and listing.found else ExitCode.OK


def require_topic(connection: Connection[Any], schema: str, topic: str) -> None:
    """Make sure that the topic exists.

    Raises:
        UnknownTopic: it does not.
    """
    found = connection.execute(
        sql.SQL("SELECT FROM {}.topic WHERE name = %s").format(sql.Identifier(schema)), (topic,)
    ).fetchone()
    if found is None:
        raise UnknownTopic(
            f"topic '{topic}' does not exist", hint="List them with: inturn topic list", topic=topic
        )


def _list(connection: Connection[Any], schema: str, wanted: _Wanted) -> _Listing:
    warnings: list[str] = []

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            warnings.append(diagnostic.message_primary or "")

    connection.add_notice_handler(note)
    try:
        found = (
            connection.cursor(row_factory=dict_row)
            .execute(
                sql.SQL(
                    "SELECT topic, key, state, applied_seq, last_seq, pending, oldest_pending_at, attempts,"
                    " ready_at, held_at, last_error, paused_at, paused_until, topic_paused,"
                    " waiting_at, claimed_by, lease_until"
                    " FROM {}.list_keys(%s::text, %s::text, %s::integer,"
                    " %s::text, %s::interval, %s::bigint, %s::text)"
                ).format(sql.Identifier(schema)),
                (
                    wanted.topic,
                    wanted.state,
                    wanted.limit + 1,
                    wanted.like,
                    wanted.older_than,
                    wanted.lagging,
                    wanted.sort,
                ),
            )
            .fetchall()
        )
    except psycopg.DataError as error:
        if error.sqlstate in _NO_INTERVAL:
            raise Failure(
                f"--older-than cannot be '{wanted.older_than}'",
                hint="Write 90s, 10m, 2h, 1d, or an interval as PostgreSQL reads it",
                code=ExitCode.USAGE,
            ) from None
        raise
    finally:
        connection.remove_notice_handler(note)
    clock = connection.execute("SELECT clock_timestamp()").fetchone()
    assert clock is not None  # noqa: S101 - a SELECT without FROM has a row
    return _Listing(wanted.limit, found, clock[0], warnings)


def _watch(connection: Connection[Any], schema: str, wanted: _Wanted, seconds: float) -> int:
    """List again and again, until Ctrl-C; what was listed last stays."""
    from rich.live import Live
    from rich.text import Text

    try:
        with Live(auto_refresh=False, vertical_overflow="ellipsis") as live:
            while True:
                listing = _list(connection, schema, wanted)
                lines = _lines(listing) if listing.found else ["no such keys"]
                head = f"{listing.now.astimezone():%H:%M:%S}, every {seconds:g} s, until Ctrl-C"
                text = Text.from_ansi("\n".join([head, *lines, *listing.remarks]))
                live.update(text, refresh=True)
                time.sleep(seconds)
    except KeyboardInterrupt:
        return ExitCode.OK


def _lines(listing: _Listing) -> list[str]:
    columns = [
        Column("topic", cut="middle"),
        Column("key", cut="middle", whole=True),
        Column("state"),
        Column("applied", right=True),
        Column("lag", right=True),
        Column("age", right=True),
    ]
    rows = [_row(key, listing.now) for key in listing.keys]
    extra: list[Column] = []
    optional = [Column("attempts", right=True), Column("next try", right=True), Column("by", cut="middle")]
    for number, column in reversed(list(enumerate(optional, len(columns)))):
        if any(row[number] for row in rows):
            extra.insert(0, column)
        else:
            rows = [[*row[:number], *row[number + 1 :]] for row in rows]
    return table_lines([*columns, *extra], rows, [first_line(key["last_error"]) for key in listing.keys])


def _row(key: dict[str, Any], now: datetime) -> list[str]:
    waiting = key["oldest_pending_at"]
    return [
        key["topic"],
        shown(key["key"]),
        "topic paused" if key["topic_paused"] and key["state"] in ("retrying", "ready") else key["state"],
        f"{key['applied_seq']}/{key['last_seq']}",
        str(key["pending"]),
        age((now - waiting).total_seconds() if waiting else None),
        str(key["attempts"] or ""),
        _next_try(key, now),
        key["claimed_by"] if key["state"] == "leased" else "",
    ]


def _next_try(key: dict[str, Any], now: datetime) -> str:
    # Of a lease it is when another applier may take the key.
    if key["state"] not in ("retrying", "paused", "leased", "waiting") or key["ready_at"] is None:
        return ""
    wait = (key["ready_at"] - now).total_seconds()
    return f"in {age(wait)}" if wait > 0 else "now"
