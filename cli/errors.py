"""What an error tells the user: one line, and an exit code."""

from __future__ import annotations

import re
from pathlib import PurePath

import click
import psycopg

from inturn.cli.advice import advised
from inturn.cli.exit_codes import ExitCode
from inturn.cli.terminal.output import escape
from inturn.schema.advice import one_line
from inturn.schema.errors import (
    InturnError,
    KeyBusy,
    SchemaMismatch,
    TargetRefused,
    TopicExists,
    UnknownTopic,
    from_database,
)

_MISSING = (
    "A part of the schema is missing, or was upgraded just now: run it again, or compare it with:"
    " inturn upgrade --sql"
)
_MISSING_TO = (
    "The function {0}, which is not inturn's, looks for it with the search_path that inturn pins:"
    " have it name the schema, or run ALTER FUNCTION {0} SET search_path TO ...; then run this again"
)
#: The innermost one that the context of an error names.
_FUNCTION = re.compile(r'function "?(?P<function>(?:[^\s(".]+\.)?(?P<name>[^\s(".]+)(?:\([^)]*\))?)')
#: A role of inturn, as a message in any language quotes it.
_ROLE = re.compile(r"\w+_(?:caller|applier|operator|admin|receiver)\b")
_PRIMARY = "Name the primary server: this one, or this session, takes no writes"
_HINTS = {
    "0A000": _PRIMARY,
    "22P05": "Write it in characters that the database's encoding has, or use a database in UTF8",
    "25006": _PRIMARY,
    "40001": "Run it again",
    "40P01": "Run it again",
    "42501": "Use its owner's login, or grant this one inturn_operator to look and set up,"
    " inturn_caller to append, inturn_applier to apply, inturn_admin to deploy; where it has that and does"
    " not inherit it: PGOPTIONS='-c role=inturn_operator'",
    "42883": _MISSING,
    "42P01": _MISSING,
    "42703": _MISSING,
    "53100": "Make room on the database server's disk",
    "55P03": "Try again when the session that holds the lock has finished",
}

# The database's own hints for these are in SQL.
_SHELL_HINTS: dict[type[InturnError], str] = {
    UnknownTopic: "Create it with: inturn topic create NAME; or see: inturn topic list",
    TopicExists: "Compare with: inturn topic list",
    TargetRefused: "Write sql:SCHEMA.FUNCTION, and create it before: it takes one inturn.command",
}

#: What the hint of KeyBusy advises in SQL: a shell needs psql for it.
_END_SESSION = re.compile(r"SELECT pg_terminate_backend\(\d+\)")

# Belt and braces: no message is built from a password, but a usage error quotes what was typed.
_SECRETS = (
    (re.compile(r"(://[^\s:/@]*):[^\s]*@"), r"\1:***@"),
    (re.compile(r"(?i)(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)"), r"\1***"),
)


class Failure(click.ClickException):
    """A command failed in a way that its user can understand.

    Args:
        message: what is wrong, in one line.
        hint: what to do about it.
        code: the exit code.
    """

    def __init__(self, message: str, *, hint: str = "", code: ExitCode = ExitCode.ERROR) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


def explain(error: BaseException) -> tuple[str, ExitCode]:
    """Return an error's one line, without passwords and control characters, and its exit code."""
    original = getattr(error, "orig", None)  # SQLAlchemy's wrapping of the driver's error
    if isinstance(original, psycopg.Error):
        error = original
    if isinstance(error, psycopg.Error):
        error = from_database(error) or error
        if isinstance(error, InturnError):
            error.hint = _SHELL_HINTS.get(type(error), error.hint)
        if isinstance(error, KeyBusy):
            error.hint = _END_SESSION.sub(r'psql "$INTURN_DSN" -c "\g<0>"', error.hint)
    message, hint, code = _parts(error)
    said, advice = (one_line(part).rstrip(".") for part in (message, advised(hint)))
    line = f"{said}{'' if said.endswith('?') else '.'} {advice}" if advice else said
    for pattern, replacement in _SECRETS:
        line = pattern.sub(replacement, line)
    return escape(line), code


def _code(error: InturnError) -> ExitCode:
    # Whatever runs no applier starts without it: it is a sixth of what would be imported.
    from inturn.applier.inside.hand import TooManyAbandoned

    codes = {SchemaMismatch: ExitCode.SCHEMA, TooManyAbandoned: ExitCode.STUCK}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), ExitCode.ERROR)


def _parts(error: BaseException) -> tuple[str, str, ExitCode]:
    match error:
        case click.Abort():
            parts = "interrupted", "", ExitCode.INTERRUPTED
        case click.ClickException():
            parts = _click_parts(error)
        case InturnError():
            parts = error.message, error.hint, _code(error)
        case psycopg.Error():
            parts = _database_parts(error)
        case UnicodeError():
            hint = "Write it in UTF-8, in a locale that has it, as LC_ALL=C.UTF-8"
            parts = "an argument, or the input, is not UTF-8", hint, ExitCode.ERROR
        case OSError():
            where = f": {error.filename}" if error.filename else ""
            parts = f"{error.strerror or error}{where}", "", ExitCode.ERROR
        case _:
            from inturn.applier.failure import on_one_line

            hint = "Please report it, with the traceback that INTURN_TRACEBACK=1 prints"
            parts = f"internal error: {type(error).__name__}: {on_one_line(error)}", hint, ExitCode.ERROR
    return parts


def _click_parts(error: click.ClickException) -> tuple[str, str, ExitCode]:
    match error:
        case Failure():
            return error.message, error.hint, error.code
        case click.UsageError():
            hint = f"See: {error.ctx.command_path} --help" if error.ctx else ""
            return error.format_message(), hint, ExitCode.USAGE
    return error.format_message(), "", ExitCode.ERROR


def _database_parts(error: psycopg.Error) -> tuple[str, str, ExitCode]:
    state = error.sqlstate
    message = error.diag.message_primary or str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, psycopg.OperationalError) and (state is None or state.startswith(("08", "57P"))):
        return (
            f"the connection to the database was lost: {message}",
            "What was not committed did not happen; try again when the database is back",
            ExitCode.UNREACHABLE,
        )
    if error.diag.message_detail:
        message = f"{message} ({error.diag.message_detail.rstrip('.')})"
    hint = error.diag.message_hint or _hint(error)
    return f"the database refused: {message}", hint, ExitCode.ERROR


def _hint(error: psycopg.Error) -> str:
    if error.sqlstate == "0A000" and "during recovery" not in str(error):  # a standby has no unlogged tables
        return ""
    if error.sqlstate == "42704" and _ROLE.search(str(error)):
        return "Have the owner of the schema, or a superuser, run: inturn upgrade"
    hint = _HINTS.get(error.sqlstate or "", "")
    stranger = _stranger(error) if hint == _MISSING else None
    return _MISSING_TO.format(stranger) if stranger else hint


def _stranger(error: psycopg.Error) -> str | None:
    """Return the function in which the error came up, if that is not ours: of a trigger, as on DDL."""
    from inturn.schema.source import manifest

    found = _FUNCTION.search(error.diag.context or "")
    ours = {"inline_code_block", *(PurePath(path).stem for path in manifest())}
    return None if found is None or found["name"] in ours else found["function"]
