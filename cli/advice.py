"""Command lines that are printed to be pasted: they name what this process's own command line has named."""

from __future__ import annotations

import os
from dataclasses import dataclass
from shlex import quote

from inturn.schema import advice
from inturn.schema.advice import DEFAULT_SCHEMA

#: How SQL writes it, which does not know by what its database was named.
_PSQL = 'psql "$INTURN_DSN"'


@dataclass(slots=True)
class Called:
    """What this process was called with; set before a command runs.

    Attributes:
        dsn: what --dsn says, None when it was not given; may hold a password.
        schema: the schema of inturn.
    """

    dsn: str | None = None
    schema: str = DEFAULT_SCHEMA


called = Called()


def named_by(dsn: str | None) -> str:
    """Return what names the database: --dsn, INTURN_DSN, PGHOST, PGSERVICE; otherwise `embedded`."""
    if dsn is not None:
        return "--dsn"
    return next((n for n in ("INTURN_DSN", "PGHOST", "PGSERVICE") if os.environ.get(n)), "embedded")


def program() -> str:
    """Return how a command line of inturn begins that works on the same schema of the same database.

    A password in --dsn is not repeated. With *** in its place the line is refused, and works on no other
    database.
    """
    beginning = advice.program(called.schema)
    if called.dsn is None:
        return beginning
    return beginning.replace("inturn", f"inturn --dsn {quote(_without_password(called.dsn))}", 1)


def advised(text: str) -> str:
    """Return a text of ours in which every command line works on the same schema of the same database.

    Args:
        text: it may quote for a shell what users have given, but hold nothing else of theirs.
    """
    return advice.begin(text.replace(_PSQL, _psql()), program())


def _psql() -> str:
    match named_by(called.dsn):
        case "--dsn":
            return f"psql {quote(_without_password(called.dsn or ''))}"
        case "embedded":
            return 'psql "$(inturn embedded start)"'
    return _PSQL  # where PG* variables name it, INTURN_DSN is empty, and psql goes by them too


def _without_password(dsn: str) -> str:
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    try:
        secrets = [name for name in ("password", "sslpassword") if conninfo_to_dict(dsn).get(name)]
        return make_conninfo(dsn, **dict.fromkeys(secrets, "***")) if secrets else dsn
    except ProgrammingError:  # which is what is wrong
        return "..."
