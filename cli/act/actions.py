"""What an operator does to put a key right: retry, skip, replay, cancel-rest, fill-gap, pause and resume."""

from __future__ import annotations

import re
from typing import Any

import click
from psycopg import Connection, sql

from inturn.cli.act.many import act_on_many, check_many, many_options
from inturn.cli.act.operator import (
    Action,
    Operator,
    change,
    find_key,
    operator_options,
    place,
    reason_option,
    topic_option,
)
from inturn.cli.database import Database, pass_database
from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode
from inturn.cli.terminal.key_text import KEY
from inturn.cli.terminal.output import escape
from inturn.cli.terminal.rows import load_time

_SPAN = re.compile(r"\d+(?:\.\d+)?\s*(?:s|m|h|d|\w{3,})")
_TIME_REFUSED = ("22007", "22008")


@click.command(
    epilog="""\b
Example:
  inturn retry order-42
  inturn retry --all --error '%timed out%' --reason 'bank is back'"""
)
@click.argument("key", type=KEY, required=False)
@topic_option
@many_options
@reason_option(required=False)
@operator_options
@pass_database
def retry(
    database: Database,
    /,
    key: str | None,
    *,
    topic: str | None,
    every: bool,
    yes: bool,
    reason: str | None,
    operator: Operator,
    **filters: str | None,
) -> None:
    """Try a held or retrying key's failed command again, now.

    It has all its attempts before it again. Mend the cause first.
    """
    check_many(key=key, every=every, filters=filters)
    with database.connect() as connection:
        if key is not None:
            found_topic, found_key = find_key(connection, database, key, topic)
            arguments = {"topic": found_topic, "key": found_key, "reason": reason}
            actions = operator.act(connection, database.schema, "retry", arguments)
        else:
            actions = act_on_many(
                connection, database.schema, operator, "retry_all",
                topic=topic, filters=filters, reason=reason, yes=yes, words=("Retry", "retried"),
            )  # fmt: skip
    if not actions:
        click.echo("inturn: no such keys", err=True)
    operator.report(actions, lambda a: f"{place(a)}: {change(a)}; command {a['seq']} will be tried again")


@click.command(
    epilog="""\b
Example:
  inturn skip order-42 --seq 17 --reason 'a test order, ticket 99'"""
)
@click.argument("key", type=KEY)
@topic_option
@click.option(
    "--seq", type=int, metavar="N", required=True, help="Which command you take to be the next one."
)
@reason_option(required=True)
@operator_options
@pass_database
def skip(
    database: Database, /, key: str, *, topic: str | None, seq: int, reason: str, operator: Operator
) -> None:
    """Pass over a key's next command, for good.

    It stays in the log, marked as skipped, and never takes effect; the commands
    after it do. To have it after all: inturn replay.
    """
    actions = _act(database, operator, "skip", key, topic, seq=seq, reason=reason)
    operator.report(actions, lambda a: f"{place(a)}: {change(a)}; command {a['seq']} is passed over")


@click.command(
    "fill-gap",
    epilog="""\b
Example:
  inturn fill-gap order-42 --seq 17 --reason 'lost at A, ticket 99'""",
)
@click.argument("key", type=KEY)
@topic_option
@click.option(
    "--seq", type=int, metavar="N", required=True, help="Which number you take to be the missing one."
)
@reason_option(required=True)
@operator_options
@pass_database
def fill_gap(
    database: Database, /, key: str, *, topic: str | None, seq: int, reason: str, operator: Operator
) -> None:
    """Pass over a number that a key waits for, for good: it will not be appended.

    The commands after it are applied. Should it be appended late after all, that
    is refused. Only where callers number; one number at a time.
    """
    actions = _act(database, operator, "fill_gap", key, topic, seq=seq, reason=reason)
    operator.report(actions, lambda a: f"{place(a)}: {change(a)}; missing command {a['seq']} is passed over")


@click.command(
    epilog="""\b
Example:
  inturn replay order-42 17 --reason 'skipped by mistake'"""
)
@click.argument("key", type=KEY)
@click.argument("seq", type=int)
@topic_option
@reason_option(required=True)
@operator_options
@pass_database
def replay(
    database: Database, /, key: str, seq: int, *, topic: str | None, reason: str, operator: Operator
) -> None:
    """Append an applied or skipped command again, with a new number at the end.

    Its old place stays as it is. Once for every SEQ: replay the new one to do it
    once more.
    """
    actions = _act(database, operator, "replay", key, topic, seq=seq, reason=reason)
    operator.report(
        actions, lambda a: f"{place(a)}: command {a['seq']} is appended again as {a['after']['seq']}"
    )


@click.command(
    "cancel-rest",
    epilog="""\b
Example:
  inturn cancel-rest order-42 --reason 'account closed, ticket 99'
  inturn cancel-rest --all --error '%no such account%' --reason 'ticket 99'""",
)
@click.argument("key", type=KEY, required=False)
@topic_option
@many_options
@reason_option(required=True)
@operator_options
@pass_database
def cancel_rest(
    database: Database,
    /,
    key: str | None,
    *,
    topic: str | None,
    every: bool,
    yes: bool,
    reason: str,
    operator: Operator,
    **filters: str | None,
) -> None:
    """Pass over everything that is pending on a key now, for good.

    What is appended later is applied as ever.
    """
    check_many(key=key, every=every, filters=filters)
    if key is not None:
        actions = _act(database, operator, "cancel_rest", key, topic, reason=reason)
    else:
        with database.connect() as connection:
            actions = act_on_many(
                connection, database.schema, operator, "cancel_rest_all",
                topic=topic, filters=filters, reason=reason, yes=yes,
                words=("Cancel all that is pending on", "cancelled"),
            )  # fmt: skip
    if not actions:
        click.echo("inturn: no such keys", err=True)
    operator.report(actions, _cancelled)


def _cancelled(action: Action) -> str:
    count, first = action["after"]["cancelled"], action["seq"]
    which = (
        f"command {first} is" if count == 1 else f"{count:,} commands, {first} to {first + count - 1}, are"
    )
    return f"{place(action)}: {change(action)}; {which} passed over"


@click.command(
    epilog="""\b
Example:
  inturn pause order-42 --reason 'looking into ticket 99'
  inturn pause --topic orders --until 30m
  inturn pause --topic orders --until 'tomorrow 06:00'"""
)
@click.argument("key", type=KEY, required=False)
@topic_option
@click.option(
    "--until", metavar="TIME", help="Go on by itself: after 30m, or at a time as PostgreSQL reads it."
)
@reason_option(required=False)
@operator_options
@pass_database
def pause(
    database: Database,
    /,
    key: str | None,
    *,
    topic: str | None,
    until: str | None,
    reason: str | None,
    operator: Operator,
) -> None:
    """Keep a key standing still; without KEY, the whole topic that --topic names.

    The command in hand is finished. Appends go on, and nothing is lost: inturn
    resume picks up in order.
    """
    if key is None and topic is None:
        raise click.UsageError("Give a KEY, or --topic for a whole topic.")
    with database.connect() as connection:
        arguments = {"reason": reason, "until": _time(connection, until)}
        if key is None:
            actions = operator.act(connection, database.schema, "pause_topic", {"topic": topic, **arguments})
        else:
            found_topic, found_key = find_key(connection, database, key, topic)
            arguments = {"topic": found_topic, "key": found_key, **arguments}
            actions = operator.act(connection, database.schema, "pause", arguments)
    operator.report(actions, _paused)


def _time(connection: Connection[Any], text: str | None) -> str | None:
    if text is None:
        return None
    span = _SPAN.fullmatch(text.strip()) is not None
    query = "SELECT (clock_timestamp() + %s::interval)::text" if span else "SELECT %s::timestamptz::text"
    try:
        row = connection.execute(sql.SQL(query), (text,)).fetchone()
    except Exception as error:
        if getattr(error, "sqlstate", None) not in _TIME_REFUSED:
            raise
        raise Failure(
            f"--until {escape(text)} is no time",
            hint="Write 30m, 2h, 1d, '2026-12-24 18:00' or 'tomorrow 06:00'",
            code=ExitCode.USAGE,
        ) from None
    # For good: what it says without --until.
    return str(row[0]) if row and row[0] != "infinity" else None


def _paused(action: Action) -> str:
    until = load_time(action["after"].get("paused_until") or "infinity")
    ends = f"until {until:%Y-%m-%d %H:%M:%S} UTC" if until else "until it is resumed"
    return f"{place(action)}: paused {ends}; appends go on"


@click.command(
    epilog="""\b
Example:
  inturn resume order-42
  inturn resume --topic orders"""
)
@click.argument("key", type=KEY, required=False)
@topic_option
@reason_option(required=False)
@operator_options
@pass_database
def resume(
    database: Database,
    /,
    key: str | None,
    *,
    topic: str | None,
    reason: str | None,
    operator: Operator,
) -> None:
    """Let a paused key go on where it stood; without KEY, the topic that --topic names."""
    if key is None and topic is None:
        raise click.UsageError("Give a KEY, or --topic for a whole topic.")
    if key is None:
        with database.connect() as connection:
            arguments = {"topic": topic, "reason": reason}
            actions = operator.act(connection, database.schema, "resume_topic", arguments)
        operator.report(actions, lambda a: f"{place(a)}: resumed")
    else:
        actions = _act(database, operator, "resume", key, topic, reason=reason)
        operator.report(actions, lambda a: f"{place(a)}: {change(a)}")


def _act(
    database: Database, operator: Operator, function: str, key: str, topic: str | None, **arguments: object
) -> list[Action]:
    with database.connect() as connection:
        found_topic, found_key = find_key(connection, database, key, topic)
        return operator.act(
            connection, database.schema, function, {"topic": found_topic, "key": found_key, **arguments}
        )
