"""What acts on many keys at a time: the options that choose them, and the question before."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click
from psycopg import Connection

from inturn.cli.act.operator import Operator, Recorded
from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode
from inturn.cli.terminal.spans import check_interval


@dataclass(frozen=True, slots=True)
class Many:
    """Which keys to act on.

    Attributes:
        every: all that the filters find; False: only the key that is named.
        yes: do not ask.
        state, like, older_than, error: the filters.
    """

    every: bool
    yes: bool
    state: str
    like: str | None
    older_than: str | None
    error: str | None


def many_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --all and the options that choose the keys; it gets them as `many`."""

    @click.option("--all", "every", is_flag=True, help="Every key that the filters find, after asking.")
    @click.option("--held", "state", flag_value="held", default=True, help="With --all: held keys (default).")
    @click.option(
        "--retrying", "state", flag_value="retrying", help="With --all: those that are tried again later."
    )
    @click.option(
        "--error",
        metavar="PATTERN",
        help="With --all: only where the error's first line is LIKE this; % stands for anything.",
    )
    @click.option("--like", metavar="PATTERN", help="With --all: only keys LIKE this; % stands for anything.")
    @click.option(
        "--older-than", metavar="AGE", help="With --all: only where the next command waits longer: 10m."
    )
    @click.option("--yes", is_flag=True, help="With --all: do not ask.")
    @functools.wraps(command)
    def with_many(
        *args: Any,
        every: bool,
        yes: bool,
        state: str,
        like: str | None,
        older_than: str | None,
        error: str | None,
        **options: Any,
    ) -> Any:
        return command(*args, many=Many(every, yes, state, like, older_than, error), **options)

    return with_many


def check_many(key: str | None, many: Many) -> None:
    """Make sure that one key is named, or all are asked for.

    Raises:
        click.UsageError: neither is, or both, or a filter stands beside a key.
    """
    if many.every == (key is not None):
        raise click.UsageError("Give a KEY, or --all.")
    if not many.every and any((many.like, many.older_than, many.error)):
        raise click.UsageError("--like, --older-than and --error go with --all.")


def act_on_many(
    connection: Connection[Any],
    schema: str,
    operator: Operator,
    function: str,
    arguments: Mapping[str, object],
    many: Many,
    words: tuple[str, str],
) -> list[Recorded]:
    """Act on every key that the filters find, after asking; return what was recorded.

    Args:
        connection, schema: where to act.
        operator: who acts, and how.
        function, arguments: the function that does it, and its arguments besides the filters.
        many: the filters, and whether to ask.
        words: what is done, for the question, and for the line where nobody can be asked: `Retry`, `retried`.
    """
    if many.older_than is not None:
        check_interval(connection, "--older-than", many.older_than)
    filters = {
        "of_state": many.state,
        "of_like": many.like,
        "older_than": many.older_than,
        "of_error": many.error,
    }
    arguments = {**arguments, **filters}
    if not (many.yes or operator.dry_run):
        rehearsal = Operator(None, True, operator.timeout, False)
        count = len(rehearsal.act(connection, schema, function, arguments))
        if not count:
            return []
        _ask(f"{count:,} {many.state} key{'' if count == 1 else 's'}", *words)
    return operator.act(connection, schema, function, arguments)


def _ask(keys: str, verb: str, done: str) -> None:
    if not sys.stdin.isatty():
        raise Failure(
            f"{keys} would be {done}, and there is nobody to ask",
            hint="Give --yes, or look first with --dry-run",
            code=ExitCode.USAGE,
        )
    click.confirm(f"{verb} {keys}?", abort=True, err=True)
