"""Session: a worker's connection, so that nothing that a handler leaves in it meets the next command."""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from inturn.schema.connection import pins
from inturn.schema.errors import InturnError

#: What a session's settings are known by: of PostgreSQL's hundreds, those on which handlers depend most.
#: It costs a few microseconds a claim. Not statement_timeout, which `limit` sets for a transaction.
_SETTINGS: LiteralString = (
    "concat_ws('|', session_user, current_user, "
    + ", ".join(
        f"current_setting('{name}')"
        for name in (
            *("search_path", "DateStyle", "IntervalStyle", "TimeZone", "session_replication_role"),
            *("lock_timeout", "idle_in_transaction_session_timeout"),
            *("default_transaction_isolation", "default_transaction_read_only", "synchronous_commit"),
        )
    )
    + ")"
)
SETTINGS = sql.SQL(_SETTINGS)

#: Tags of statements that change settings, which are put back at once.
_CHANGES_SETTINGS = frozenset({"SET", "RESET"})
#: Of those that may leave something else in the session.
_LEAVES_BEHIND = frozenset({"LISTEN", "PREPARE", "DECLARE CURSOR"})
#: Of those that take away what the driver relies on.
_TAKES_AWAY = frozenset({"LOAD", "DISCARD ALL", "DISCARD", "DEALLOCATE", "DEALLOCATE ALL"})
#: What takes a session's lock, or makes a table that outlasts the transaction, has this in its text.
_LEAVING = re.compile(
    r"\bpg_(try_)?advisory_lock|\btemp(orary)?\b(?!.*\bon\s+commit\s+drop\b)", re.IGNORECASE | re.DOTALL
)
_IS_LITTERED = sql.SQL(
    "SELECT EXISTS (SELECT FROM pg_class WHERE relnamespace = pg_my_temp_schema())"
    " OR EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
    " OR EXISTS (SELECT FROM pg_listening_channels())"
    " OR EXISTS (SELECT FROM pg_prepared_statements WHERE from_sql)"
    " OR EXISTS (SELECT FROM pg_cursors WHERE is_holdable)"
).format()


class SessionChanged(InturnError):
    """The session is not as it was when it was made: what ran in it has changed its settings."""


class WatchedCursor(psycopg.Cursor[Any]):
    """The cursor that handlers get: notes statements that leave something in the session."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        result = super().execute(query, params, **options)
        self._note(query)
        return result

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        super().executemany(query, params_seq, **options)
        self._note(query)

    def _note(self, query: object) -> None:
        session = _sessions.get(self.connection)
        if session is None:
            return
        tag = self.statusmessage or ""
        if tag in _CHANGES_SETTINGS:
            session.changed = True
        elif tag in _TAKES_AWAY:
            session.worn = session.spent = True
        elif tag in _LEAVES_BEHIND or _LEAVING.search(str(query)):
            session.worn = True


class Session:
    """What inturn keeps beside a connection.

    Attributes:
        changed: a statement has changed settings since they were last put back.
        worn: something may be left that nothing but another connection gets rid of: see is_fit.
        spent: that is certain.
        settings: what they were at the beginning.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        # Its own cursor, with its own copy of the adapters: whatever is registered on the connection later,
        # inturn's statements are read as they always were.
        self._cursor = psycopg.Cursor(connection, row_factory=tuple_row)
        _ = self._cursor.adapters
        connection.cursor_factory = WatchedCursor
        self._attributes = {name: getattr(connection, name) for name in _ATTRIBUTES}
        self.changed = False
        self.worn = False
        self.spent = False
        row = self._cursor.execute(sql.SQL("SELECT {}").format(SETTINGS)).fetchone()
        self.settings: str = row[0] if row else ""
        self._seconds: float | None = None

    def execute(self, query: sql.Composed, parameters: Sequence[Any] = ()) -> psycopg.Cursor[Any]:
        return self._cursor.execute(query, parameters)

    def limit(self, seconds: float | None) -> None:
        """Have the database cancel what takes longer, to the end of the transaction; None: no limit."""
        self._seconds = seconds
        if seconds is not None:
            self._cursor.execute(_limit(seconds))

    def restore(self, connection: psycopg.Connection[Any]) -> None:
        """Restore what a handler has set on the connection object, whether it succeeded or not."""
        for name, value in self._attributes.items():
            if getattr(connection, name) is not value:
                setattr(connection, name, value)

    def put_back(self, connection: psycopg.Connection[Any]) -> None:
        """Put back the settings that a handler has changed. After a failure that is done by the rollback.

        Raises:
            psycopg.Error: the connection is lost, or cannot put it back.
        """
        if self.changed:
            self.changed = False
            again = [pins(connection.info.backend_pid)]
            if self._seconds is not None:
                again.append(_limit(self._seconds))
            # One round trip, which the driver must not prepare: it is several statements.
            statements = sql.SQL("RESET SESSION AUTHORIZATION; RESET ALL; {}").format(
                sql.SQL("; ").join(again)
            )
            self._cursor.execute(statements, prepare=False)

    def is_fit(self) -> bool:
        """Return whether the session can be used for further commands, between two transactions.

        Raises:
            psycopg.Error: the connection is lost.
        """
        if self.worn and not self.spent:
            row = self._cursor.execute(_IS_LITTERED).fetchone()
            self.spent = bool(row and row[0])
            self.worn = self.spent
        return not self.spent

    def check(self, settings: str) -> None:
        """Compare what the session's settings are now with what they were.

        Raises:
            SessionChanged: they differ: the connection has to be given up.
        """
        if settings != self.settings:
            self.worn = self.spent = True
            raise SessionChanged(
                "a command has left the session changed",
                hint=f"It is given up. Its settings are {settings}, and were {self.settings}",
            )


def _limit(seconds: float) -> sql.Composed:
    return sql.SQL("SELECT set_config('statement_timeout', {}, true)").format(
        str(max(int(seconds * 1000), 1))
    )


_ATTRIBUTES = ("row_factory", "cursor_factory", "prepare_threshold", "server_cursor_factory")
_sessions: weakref.WeakKeyDictionary[psycopg.Connection[Any], Session] = weakref.WeakKeyDictionary()


def session_of(connection: psycopg.Connection[Any]) -> Session:
    """Return what is kept beside a connection; made when it is first asked for, before any handler had it."""
    session = _sessions.get(connection)
    if session is None:
        session = _sessions[connection] = Session(connection)
    return session
