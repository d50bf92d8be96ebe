"""What acts on many keys at a time: the options that choose them, and the question before."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click
from psycopg import Connection, Rollback

from inturn.cli.act.operator import Operator, Recorded
from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode
from inturn.cli.terminal.confirm import confirm
from inturn.cli.terminal.output import echo
from inturn.cli.terminal.spans import check_interval


@dataclass(frozen=True, slots=True)
class Many:
    """Which keys to act on.

    Attributes:
        every: all that the filters find; False: only the key that is named.
        yes: do not ask.
        state: held or retrying; None: held.
        like, older_than, error: the filters.
    """

    every: bool
    yes: bool
    state: str | None
    like: str | None
    older_than: str | None
    error: str | None


def many_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --all and the options that choose the keys; it gets them as `many`."""

    @click.option("--all", "every", is_flag=True, help="Every key that the filters find, after asking.")
    @click.option("--held", "state", flag_value="held", default=None, help="With --all: held keys (default).")
    @click.option(
        "--retrying",
        "state",
        flag_value="retrying",
        default=None,
        help="With --all: those that are tried again later.",
    )
    @click.option(
        "--error",
        metavar="PATTERN",
        help="With --all: only where the error's first line is LIKE this; % stands for anything.",
    )
    @click.option("--like", metavar="PATTERN", help="With --all: only keys LIKE this; % stands for anything.")
    @click.option(
        "--older-than",
        metavar="INTERVAL",
        help="With --all: only where the next command has waited at least this long: 10m.",
    )
    @click.option("--yes", is_flag=True, help="With --all: do not ask.")
    @functools.wraps(command)
    def with_many(
        *args: Any,
        every: bool,
        yes: bool,
        state: str | None,
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
    filters = (many.state, many.like, many.older_than, many.error)
    if not many.every and any(one is not None for one in filters):
        raise click.UsageError("--held, --retrying, --like, --older-than and --error go with --all.")


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

    Only on keys that were asked about: where there are more by the time of the answer, it asks again.

    Args:
        connection, schema: where to act.
        operator: who acts, and how.
        function, arguments: the function that does it, and its arguments besides the filters.
        many: the filters, and whether to ask.
        words: what is done, for the question, and for the line where nobody can be asked: `Retry`, `retried`.
    """
    if many.older_than is not None:
        check_interval(connection, "--older-than", many.older_than)
    state = many.state or "held"
    filters = {"of_state": state, "of_like": many.like, "older_than": many.older_than, "of_error": many.error}
    arguments = {**arguments, **filters}

    def act(as_operator: Operator) -> list[Recorded]:
        return as_operator.act(connection, schema, function, arguments)

    if many.yes or operator.dry_run:
        return act(operator)
    asked = _keys(act(Operator(None, True, operator.timeout, False)))
    while asked:
        _ask(f"{len(asked):,} {state} key{'' if len(asked) == 1 else 's'}", *words)
        found, is_done = _act_on_these(connection, asked, lambda: act(operator))
        if is_done:
            return found
        echo(f"inturn: {len(_keys(found) - asked):,} more since you were asked", err=True)
        asked = _keys(found)
    return []


def _act_on_these(
    connection: Connection[Any], asked: set[tuple[str, str]], act: Callable[[], list[Recorded]]
) -> tuple[list[Recorded], bool]:
    """Act, and return whether that is done: where it would be done to other keys too, it is undone."""
    with connection.transaction() as whole:
        found = act()
        if _keys(found) <= asked:
            return found, True
        raise Rollback(whole)
    return found, False


def _keys(actions: list[Recorded]) -> set[tuple[str, str]]:
    return {(done["topic"], done["key"]) for done in actions}


def _ask(keys: str, verb: str, done: str) -> None:
    if not sys.stdin.isatty():
        raise Failure(
            f"{keys} would be {done}, and there is nobody to ask",
            hint="Give --yes, or look first with --dry-run",
            code=ExitCode.USAGE,
        )
    confirm(f"{verb} {keys}?")
