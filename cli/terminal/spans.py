"""Spans of time as users type them, and the error when one cannot be read."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import Connection

from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode
from inturn.cli.terminal.output import escape

_NO_INTERVAL = ("22007", "22008", "22015")


def refuse_interval(error: psycopg.Error, option: str, value: str | None) -> Exception:
    """Return the failure that names the option whose interval could not be read; otherwise the error."""
    if error.sqlstate not in _NO_INTERVAL:
        return error
    return Failure(
        f"{option} cannot be '{escape(value or '')}'",
        hint="Write 90s, 10m, 2h, 1d, or an interval as PostgreSQL reads it",
        code=ExitCode.USAGE,
    )


def check_interval(connection: Connection[Any], option: str, value: str) -> None:
    """Make sure that the database can read an interval.

    Raises:
        Failure: it cannot.
    """
    try:
        connection.execute("SELECT %s::interval", (value,))
    except psycopg.DataError as error:
        raise refuse_interval(error, option, value) from None
