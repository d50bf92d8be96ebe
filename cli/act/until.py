"""`--until`: how long a pause lasts, as a span of time or a time."""

from __future__ import annotations

import re
from typing import Any

from psycopg import Connection, sql

from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode
from inturn.cli.terminal.output import escape

# Digits alone are a date, 20261224, though PostgreSQL reads them as seconds too.
_SPAN = re.compile(r"(?:\d+(?:\.\d+)?\s*(?:s|m|h|d|[^\W\d_]{3,})\s*)+")
_TIME_REFUSED = ("22007", "22008")


def read_until(connection: Connection[Any], text: str | None) -> str | None:
    """Return the time as the database writes it; None for one that never comes.

    Raises:
        Failure: it is not a time.
    """
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
            f"--until {escape(text)} is not a time",
            hint="Write 30m, 2h, 1d, '2026-12-24 18:00' or 'tomorrow 06:00'",
            code=ExitCode.USAGE,
        ) from None
    # As without --until: for good.
    return str(row[0]) if row and row[0] != "infinity" else None
