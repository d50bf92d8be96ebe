"""What acts on many keys at a time: the options that choose them, and the question before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
from psycopg import Connection

from inturn.cli.act.operator import Action, Operator
from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode
from inturn.cli.terminal.spans import check_interval

#: Each option's name, and that of the functions' parameter.
_FILTERS = {"state": "of_state", "like": "of_like", "older_than": "older_than", "error": "of_error"}


def many_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --all and the options that choose the keys."""
    for option in reversed(
        (
            click.option(
                "--all", "every", is_flag=True, help="Every key that the filters find, after asking."
            ),
            click.option(
                "--held", "state", flag_value="held", default=True, help="With --all: held keys (default)."
            ),
            click.option(
                "--retrying",
                "state",
                flag_value="retrying",
                help="With --all: those that are tried again later.",
            ),
            click.option(
                "--error",
                metavar="PATTERN",
                help="With --all: only where the error's first line is LIKE this; % stands for anything.",
            ),
            click.option(
                "--like", metavar="PATTERN", help="With --all: only keys LIKE this; % stands for anything."
            ),
            click.option(
                "--older-than",
                metavar="AGE",
                help="With --all: only where the next command waits longer: 10m.",
            ),
            click.option("--yes", is_flag=True, help="With --all: do not ask."),
        )
    ):
        command = option(command)
    return command


def check_many(*, key: str | None, every: bool, filters: dict[str, str | None]) -> None:
    """Make sure that one key is named, or all are asked for.

    Raises:
        click.UsageError: neither is, or both, or a filter stands beside a key.
    """
    if every == (key is not None):
        raise click.UsageError("Give a KEY, or --all.")
    if not every and any(filters[name] for name in ("like", "older_than", "error")):
        raise click.UsageError("--like, --older-than and --error go with --all.")


def act_on_many(
    connection: Connection[Any],
    schema: str,
    operator: Operator,
    function: str,
    *,
    topic: str | None,
    filters: dict[str, str | None],
    reason: str | None,
    yes: bool,
    words: tuple[str, str],
) -> list[Action]:
    """Act on every key that the filters find, after asking; return what was recorded.

    Args:
        connection, schema: where to act.
        operator: who acts, and how.
        function: the function that does it.
        topic, filters, reason: its arguments.
        yes: do not ask.
        words: what is done, for the question, and for who cannot be asked: `Retry`, `retried`.
    """
    arguments = {"of_topic": topic, "reason": reason}
    arguments |= {parameter: filters[name] for name, parameter in _FILTERS.items()}
    if filters["older_than"] is not None:
        check_interval(connection, "--older-than", filters["older_than"])
    if not (yes or operator.dry_run):
        rehearsal = Operator(None, True, operator.timeout, False)
        count = len(rehearsal.act(connection, schema, function, arguments))
        if not count:
            return []
        _ask(f"{count:,} {filters['state']} key{'' if count == 1 else 's'}", *words)
    return operator.act(connection, schema, function, arguments)


def _ask(keys: str, verb: str, done: str) -> None:
    if not sys.stdin.isatty():
        raise Failure(
            f"{keys} would be {done}, and there is nobody to ask",
            hint="Give --yes, or look first with --dry-run",
            code=ExitCode.USAGE,
        )
    click.confirm(f"{verb} {keys}?", abort=True, err=True)
