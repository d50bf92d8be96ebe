"""`inturn keys`: where the keys stand, the most urgent first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import click
import psycopg
from psycopg import Connection, sql

from inturn.cli.database import Database, pass_database
from inturn.cli.exit_codes import ExitCode
from inturn.cli.look.sessions import topics_down
from inturn.cli.look.topics import require_topic, say_hidden_topics
from inturn.cli.terminal.key_text import TOPIC, shown
from inturn.cli.terminal.output import (
    Column,
    age,
    echo,
    echo_all,
    first_line,
    json_option,
    print_json,
    table_lines,
)
from inturn.cli.terminal.rows import Row, clock, fetch
from inturn.cli.terminal.spans import refuse_interval
from inturn.cli.terminal.watch import watch_lines, watch_option

_STATES = ("held", "waiting", "retrying", "paused", "leased", "ready", "arrived", "idle")
_KEYS = """
SELECT topic, key, state, applied_seq, last_seq, pending, oldest_pending_at, attempts, ready_at, held_at,
       last_error, paused_at, paused_until, topic_paused, waiting_at, claimed_by, lease_until,
       topic = ANY (%s) AS target_down
FROM {0}.list_keys(%s::text, %s::text, %s::integer, %s::text, %s::interval, %s::bigint, %s::text, %s::text)
"""


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
    error: str | None

    @property
    def filtered(self) -> bool:
        filters = (self.topic, self.state, self.like, self.older_than, self.lagging, self.error)
        return any(f is not None for f in filters)


@dataclass
class _Listing:
    """What was found, of which `limit` are listed, and when."""

    limit: int
    found: list[Row]
    now: datetime
    warnings: list[str] = field(default_factory=list)

    @property
    def listed(self) -> list[Row]:
        return self.found[: self.limit]

    @property
    def remarks(self) -> list[str]:
        more = [f"there are more than {self.limit}; --limit N lists more"]
        return [f"inturn: {text}" for text in self.warnings + more * (len(self.found) > self.limit)]


@click.command(
    epilog="""\b
Example:
  inturn keys --topic orders --held --retrying
  inturn keys --errors
  inturn keys --older-than 10m --check || echo 'keys stand still'"""
)
@click.option("--held", is_flag=True, help="Keys whose next command failed for good.")
@click.option("--waiting", is_flag=True, help="Keys that wait for a number that nobody has appended.")
@click.option("--retrying", is_flag=True, help="Keys whose next command failed and will be tried again.")
@click.option("--paused", is_flag=True, help="Keys that an operator has paused.")
@click.option("--leased", is_flag=True, help="Keys that an applier works on by lease.")
@click.option("--ready", is_flag=True, help="Keys that have commands to apply.")
@click.option("--arrived", is_flag=True, help="Keys whose pending commands have no number yet.")
@click.option("--idle", is_flag=True, help="Keys with nothing pending.")
@click.option("--state", type=click.Choice(_STATES), hidden=True)
@click.option(
    "--lagging",
    type=click.IntRange(min=1),
    is_flag=False,
    flag_value=100,
    metavar="[N]",
    help="Keys with N pending commands or more; the default of N is 100.",
)
@click.option(
    "--older-than",
    metavar="INTERVAL",
    help="Keys whose next command has waited at least this long: 90s, 10m, 2h, 1d.",
)
@click.option("--topic", type=TOPIC, metavar="NAME", help="Only keys of this topic.")
@click.option("--like", metavar="PATTERN", help="Keys like this: % is any text, _ is one character.")
@click.option("--error", metavar="PATTERN", help="Keys with an error (first line) like '%timed out%'.")
@click.option("--errors", is_flag=True, help="List the errors of held and retrying keys instead, each once.")
@click.option(
    "--sort",
    type=click.Choice(["lag", "age", "attempts"]),
    help="The greatest first; the default is the most urgent state first.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    default=50,
    show_default=True,
    help="List at most N.",
)
@click.option("--check", is_flag=True, help="Exit with 7 if there are such keys or may be; silent if not.")
@watch_option
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
    error: str | None,
    errors: bool,
    sort: str | None,
    limit: int,
    check: bool,
    watch: float | None,
    as_json: bool,
    **states: bool,
) -> int:
    """List keys and where they stand, the most urgent first.

    With several states, it lists keys in any of them. lag counts the commands that
    are not applied; age is how long the next of them has waited, or the first one
    that is there if the key waits for a number. A ready or retrying key of a paused
    topic is listed as `topic paused`; if the topic's target does not answer, next
    try is `target down`. Keys are quoted for a shell; put -- before one that begins
    with a dash.
    """
    chosen = [name for name in _STATES if states[name] or name == state]
    wanted = _Wanted(topic, ",".join(chosen) or None, limit, like, older_than, lagging, sort, error)
    _check_options(wanted, errors=errors, check=check, watch=watch, as_json=as_json)
    look, print_out = (_list_errors, _error_lines) if errors else (_list, _lines)
    with database.connect() as connection:
        if topic is not None:
            require_topic(connection, database.schema, topic)
        if watch:
            return watch_lines(watch, lambda: _watched(look(connection, database.schema, wanted), print_out))
        listing = look(connection, database.schema, wanted)
        say_hidden_topics(connection, database.schema, topic, quiet=check)
    if as_json:
        print_json(listing.listed)
    elif listing.found:
        echo_all(print_out(listing))
    elif not check:
        echo("inturn: no such keys" if wanted.filtered or errors else "inturn: no keys yet", err=True)
    for remark in listing.remarks:
        echo(remark, err=True)
    return ExitCode.FOUND if check and (listing.found or listing.warnings) else ExitCode.OK


def _check_options(wanted: _Wanted, *, errors: bool, check: bool, watch: float | None, as_json: bool) -> None:
    chosen = wanted.state or wanted.lagging or wanted.older_than
    if check and not (chosen or wanted.error):
        raise click.UsageError("--check needs --held, another state, --lagging, --older-than or --error.")
    if watch and (check or as_json):
        raise click.UsageError("--watch goes neither with --json nor with --check.")
    if errors and (check or chosen or wanted.sort):
        raise click.UsageError("--errors goes with --topic, --like, --error, --limit, --watch and --json.")


def _watched(listing: _Listing, print_out: Callable[[_Listing], Sequence[str]]) -> tuple[datetime, list[str]]:
    lines = print_out(listing) if listing.found else ["no such keys"]
    return listing.now, [*lines, *listing.remarks]


def _list(connection: Connection[Any], schema: str, wanted: _Wanted) -> _Listing:
    warnings: list[str] = []

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            warnings.append(diagnostic.message_primary or "")

    connection.add_notice_handler(note)
    try:
        found = fetch(
            connection,
            sql.SQL(_KEYS).format(sql.Identifier(schema)),
            (topics_down(connection, schema), wanted.topic, wanted.state, wanted.limit + 1, wanted.like,
             wanted.older_than, wanted.lagging, wanted.sort, wanted.error),
        )  # fmt: skip
    except psycopg.DataError as error:
        raise refuse_interval(error, "--older-than", wanted.older_than) from None
    finally:
        connection.remove_notice_handler(note)
    return _Listing(wanted.limit, found, clock(connection), warnings)


def _list_errors(connection: Connection[Any], schema: str, wanted: _Wanted) -> _Listing:
    found = fetch(
        connection,
        sql.SQL(
            "SELECT topic, error, held, retrying, first_at, last_at, key"
            " FROM {}.list_errors(%s::text, %s::text, %s::text, %s)"
        ).format(sql.Identifier(schema)),
        (wanted.topic, wanted.like, wanted.error, wanted.limit + 1),
    )
    return _Listing(wanted.limit, found, clock(connection))


def _error_lines(listing: _Listing) -> Sequence[str]:
    """Return the errors as a table; each error has its own line on a terminal, where it is cut last."""
    return table_lines(
        [
            Column("topic", cut="middle"),
            Column("keys", right=True),
            Column("held", right=True),
            Column("retrying", right=True),
            Column("first", right=True),
            Column("last", right=True),
            Column("last key", cut="middle", whole=True),
        ],
        [
            [
                row["topic"],
                f"{row['held'] + row['retrying']:,}",
                f"{row['held']:,}" if row["held"] else "",
                f"{row['retrying']:,}" if row["retrying"] else "",
                *(
                    f"{age((listing.now - row[name]).total_seconds())} ago"
                    for name in ("first_at", "last_at")
                ),
                shown(row["key"]),
            ]
            for row in listing.listed
        ],
        [row["error"] for row in listing.listed],
    )


def _lines(listing: _Listing) -> Sequence[str]:
    columns = [
        Column("topic", cut="middle"),
        Column("key", cut="middle", whole=True),
        Column("state"),
        Column("applied", right=True),
        Column("lag", right=True),
        Column("age", right=True),
    ]
    rows = [_row(key, listing.now) for key in listing.listed]
    extra: list[Column] = []
    optional = [Column("attempts", right=True), Column("next try", right=True), Column("by", cut="middle")]
    for number, column in reversed(list(enumerate(optional, len(columns)))):
        if any(row[number] for row in rows):
            extra.insert(0, column)
        else:
            rows = [[*row[:number], *row[number + 1 :]] for row in rows]
    return table_lines([*columns, *extra], rows, [first_line(key["last_error"]) for key in listing.listed])


def _row(key: Row, now: datetime) -> list[str]:
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


def _next_try(key: Row, now: datetime) -> str:
    if key["target_down"] and key["state"] in ("retrying", "ready"):
        return "target down"
    # Of a lease it is when another applier may take the key.
    if key["state"] not in ("retrying", "paused", "leased", "waiting") or key["ready_at"] is None:
        return ""
    wait = (key["ready_at"] - now).total_seconds()
    return f"in {age(wait)}" if wait > 0 else "now"
