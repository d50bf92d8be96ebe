"""`inturn wait`: scripts go on when what they appended has taken effect."""

from __future__ import annotations

import time
from typing import Any

import click
import psycopg
from psycopg import Connection, sql

from inturn.cli.act.operator import find_key
from inturn.cli.database import Database, pass_database
from inturn.cli.errors import Failure, explain
from inturn.cli.exit_codes import ExitCode
from inturn.cli.terminal.key_text import KEY, TOPIC, shown, to_paste
from inturn.cli.terminal.output import echo, first_line, json_option, print_json
from inturn.cli.terminal.seconds import Seconds
from inturn.outbox import bounded
from inturn.outbox.bounded import Guard, made_within
from inturn.outbox.one_wait import OneWait, Waited
from inturn.outbox.waiting import run
from inturn.schema.advice import one_line
from inturn.schema.errors import KeyHeld, NotApplied, UnknownKey

_RECONNECT_SECONDS = 0.5


@click.command(
    epilog="""\b
Exit codes: 0 applied, or skipped; 3 the key is held; 11 the time is over.

\b
Example:
  seq=$(inturn append orders order-42 insert '{"amount": 3}')
  inturn wait order-42 "$seq" --topic orders && ./use-the-order
  inturn wait order-42 --timeout 600"""
)
@click.argument("key", type=KEY)
@click.argument("seq", type=click.IntRange(0, 2**63 - 1), required=False)
@click.option("--topic", type=TOPIC, metavar="NAME", help="The key's topic; needed for a key that is new.")
@click.option(
    "--timeout",
    type=Seconds(min=0),
    metavar="SECONDS",
    default=30.0,
    show_default=True,
    help="The longest wait; inf: no limit.",
)
@click.option("--idempotency-key", metavar="TEXT", help="Wait for the command that has it.")
@json_option
@pass_database
def wait(
    database: Database,
    key: str,
    seq: int | None,
    *,
    topic: str | None,
    timeout: float,
    idempotency_key: str | None,
    as_json: bool,
) -> int:
    """Wait until a key has been applied up to a command.

    SEQ is the command's number, as append prints it. Without it, wait for everything
    that is committed on the key now. A command that was skipped counts as applied; the
    line that is printed says so.

    A wait for a held key ends at once, because the key stands still until an operator
    acts. While the database is away, it tries to connect again. --timeout bounds all of
    this; only what is under way when the time ends may take up to 5 seconds longer.
    """
    if seq is not None and idempotency_key is not None:
        raise click.UsageError("Give SEQ or --idempotency-key, not both.")
    ends_at = time.monotonic() + timeout
    with _connection(database, ends_at) as connection:
        with _guarded(connection, ends_at):
            topic, key = _place(connection, database, key, topic)
        remaining = max(ends_at - time.monotonic(), 0)
        task = OneWait(topic, key, seq, remaining, idempotency_key, database.schema)
        try:
            found = _waited(database, connection, task)
        except NotApplied as problem:
            because = _error_of(database, problem, ends_at) if isinstance(problem, KeyHeld) else None
            return _report_problem(problem, because, as_json=as_json)
    _report(task, found, as_json=as_json)
    return ExitCode.OK


def _connection(database: Database, ends_at: float) -> Connection[Any]:
    """Return a connection; also where the time is short, there is some for it.

    Raises:
        Failure: it is not made in time.
    """
    _ = database.conninfo  # may start the embedded server, which is not left in the middle of that
    return _made_within(max(ends_at - time.monotonic(), bounded.ANSWER_SECONDS), database)


def _made_within(seconds: float, database: Database) -> Connection[Any]:
    try:
        return made_within(seconds, database.connect)
    except TimeoutError:
        raise Failure(
            "cannot connect to the database in the time to wait",
            hint="Check that it runs, and its address and login",
            code=ExitCode.UNREACHABLE,
        ) from None


def _guarded(connection: Connection[Any], ends_at: float) -> Guard:
    return Guard(connection, ends_at + bounded.ANSWER_SECONDS - time.monotonic())


def _place(connection: Connection[Any], database: Database, text: str, topic: str | None) -> tuple[str, str]:
    """Return the topic and the key; a caller's login may look for neither, and names both."""
    try:
        return find_key(connection, database, text, topic)
    except psycopg.errors.InsufficientPrivilege:
        if topic is None:
            raise Failure(
                "this login may not look for the key's topic",
                hint="Name it with --topic",
                code=ExitCode.USAGE,
            ) from None
        return topic, text
    except UnknownKey as error:
        error.hint = "To wait for a key that is new, name its topic with --topic"
        raise


def _waited(database: Database, connection: Connection[Any], task: OneWait) -> Waited:
    """Wait, over as many connections as it takes until the time is over."""
    current = connection
    try:
        while True:
            try:
                return run(current, task)
            except psycopg.OperationalError as error:
                if not current.closed or task.remaining() <= 0:
                    raise
                line, _ = explain(error)
                echo(f"inturn: {line}; waiting on", err=True)
            current = _connected_again(database, task)
    finally:
        if current is not connection:
            current.close()


def _connected_again(database: Database, task: OneWait) -> Connection[Any]:
    while True:
        try:
            return _made_within(task.remaining(), database)
        except (Failure, psycopg.OperationalError) as error:
            # The second: it is lost again while the schema is looked at.
            is_away = not isinstance(error, Failure) or error.code == ExitCode.UNREACHABLE
            if not is_away or task.remaining() <= 0:
                raise
        time.sleep(max(min(_RECONNECT_SECONDS, task.remaining()), 0))


def _report(task: OneWait, found: Waited, *, as_json: bool) -> None:
    if as_json:
        place = {"topic": task.topic, "key": task.key, "seq": task.seq}
        print_json(
            {**place, "outcome": "applied", "applied_seq": found.applied_seq, "skipped": found.skipped}
        )
        return
    says = f"command {task.seq} was skipped: it never took effect" if found.skipped else "applied"
    echo(f"{task.topic} {shown(task.key)}: {says}, up to {found.applied_seq}")


def _report_problem(problem: NotApplied, because: str | None, *, as_json: bool) -> int:
    held = isinstance(problem, KeyHeld)
    if as_json:
        place = {"topic": problem.topic, "key": problem.key, "seq": problem.seq}
        stands = {"applied_seq": problem.applied_seq, "state": problem.state, "since": problem.since}
        outcome = "held" if held else "timed out"
        print_json({**place, "outcome": outcome, **stands, "skipped": False, "error": because})
    else:
        why = to_paste("why", str(problem.key), problem.topic)
        hint = f"Find out more by: {why}"
        parts = (problem.message, because and f"It failed with: {first_line(because).rstrip('.')}", hint)
        line = ". ".join(one_line(part) for part in parts if part)
        echo(f"inturn: {line}", err=True)
    return ExitCode.HELD if held else ExitCode.TIMED_OUT


def _error_of(database: Database, problem: NotApplied, ends_at: float) -> str | None:
    """Return what the held command failed with, for those who may read it: operators."""
    query = sql.SQL("SELECT last_error FROM {}.key_cursor WHERE topic = %s AND key = %s").format(
        sql.Identifier(database.schema)
    )
    try:
        with _connection(database, ends_at) as connection, _guarded(connection, ends_at):
            row = connection.execute(query, (problem.topic, problem.key)).fetchone()
    except (psycopg.Error, Failure):
        return None
    return row[0] if row else None
