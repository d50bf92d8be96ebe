"""Session: a worker's connection, so that nothing that a handler leaves in it meets the next command."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from operator import attrgetter, is_
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from inturn.applier import calls, pacing
from inturn.applier.calls.call import Call
from inturn.schema.connection import pinned_for_handlers
from inturn.schema.errors import InturnError, OwnerChanged, TargetRefused, from_database
from inturn.schema.pooling import is_pooled

_T = TypeVar("_T")

#: With these a topic is refused.
_REFUSALS = {TargetRefused.sqlstate, OwnerChanged.sqlstate}

#: Tags of statements that change settings, which are put back at once.
_CHANGES_SETTINGS = frozenset({"SET", "RESET"})
#: Of those that may leave something else in the session.
_LEAVES_BEHIND = frozenset({"LISTEN", "PREPARE", "DECLARE CURSOR"})
#: Of those that take away what the driver relies on.
_TAKES_AWAY = frozenset({"LOAD", "DISCARD ALL", "DISCARD", "DEALLOCATE", "DEALLOCATE ALL"})
#: What changes settings and has another tag has this in its text.
_SETTING = re.compile(r"\bset_config\s*\(", re.IGNORECASE)
#: What takes a session's lock, or makes a table that outlasts the transaction, has this in its text.
_LEAVING = re.compile(
    r"\bpg_(try_)?advisory_lock|\btemp(orary)?\b(?!.*\bon\s+commit\s+drop\b)", re.IGNORECASE | re.DOTALL
)

#: Handlers run the same statements again and again. A text that is longer is not remembered.
_REMEMBERED, _LONGEST_REMEMBERED = 500, 10_000


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
        session = _kept_beside(self.connection)
        if session is None:
            return
        tag, text = self.statusmessage or "", str(query)
        look = _look_through if len(text) <= _LONGEST_REMEMBERED else _look_through.__wrapped__
        changes, leaves = look(text)
        if changes or tag in _CHANGES_SETTINGS:
            session.changed = True
        if tag in _TAKES_AWAY:
            session.worn = session.spent = True
        elif leaves or tag in _LEAVES_BEHIND:
            session.worn = True


@lru_cache(_REMEMBERED)
def _look_through(text: str) -> tuple[bool, bool]:
    """Return whether a statement's text changes settings, and whether it leaves something behind."""
    return _SETTING.search(text) is not None, _LEAVING.search(text) is not None


class Session:
    """What inturn keeps beside a connection.

    Attributes:
        changed: a statement has changed settings since they were last put back.
        worn: something may be left that only a new connection gets rid of: see is_fit.
        spent: that is certain.
        settings: what they were at the beginning, those on which handlers depend most.
        pinned: what inturn has set then; nothing through a pooler, where the session is others' too.
        trips: how long the beginnings of its transactions took.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        # Its own cursor, with its own copy of the adapters: whatever is registered on the connection later,
        # inturn's statements are read as they always were.
        self._cursor = psycopg.Cursor(connection, row_factory=tuple_row)
        _ = self._cursor.adapters
        connection.cursor_factory = WatchedCursor
        self._attributes = {name: getattr(connection, name) for name in _ATTRIBUTES}
        self._modes = {name: getattr(connection, name) for name in _MODES}
        self._made = _as_made(connection)
        callbacks: list[list[Any]] = [getattr(connection, name, []) for name in _CALLBACKS]
        self._callbacks = [(given, len(given)) for given in callbacks]
        self._encoding = connection.pgconn.parameter_status(_ENCODING)
        self.changed = False
        self.worn = False
        self.spent = False
        self.trips = pacing.Trips()
        self.settings, self._transaction_timeout = self.call(calls.session.beginning())
        self._seconds: float | None = None
        # Composed once: that takes longer than to run it.
        self._put_back: dict[float | None, bytes] = {}
        self._is_pooled = is_pooled(connection)
        self.pinned: calls.sql_target.Settings = (None, None)
        if not self._is_pooled:
            self.pinned = pinned_for_handlers(self.call(calls.session.check_interval()))

    def call(self, call: Call[_T]) -> _T:
        """Run a statement of inturn; see Call."""
        return call.on(self._cursor)

    def ask(self, call: Call[_T], topic: str) -> _T:
        """Do as `call`, for a statement that is refused where its topic is.

        Of any other one the SQLSTATE tells nothing: it may be that of a trigger on what a command did.

        Raises:
            TargetRefused, OwnerChanged: the topic is refused.
        """
        try:
            return self.call(call)
        except psycopg.DatabaseError as error:
            refusal = from_database(error, topic=topic) if error.sqlstate in _REFUSALS else None
            if refusal is None:
                raise
            raise refusal from error

    @contextmanager
    def transaction(self, connection: psycopg.Connection[Any]) -> Iterator[None]:
        """Make a transaction, and time its beginning; see Trips."""
        began_at = time.monotonic()
        with connection.transaction():
            self.trips.add(time.monotonic() - began_at)
            yield

    def limit(self, seconds: float | None) -> None:
        """Have the database cancel what takes longer, to the end of the transaction; None: no limit."""
        self._seconds = seconds
        if seconds is not None:
            self.call(calls.session.limit(seconds))

    def begin_until(self, began_at: float, seconds: float) -> float:
        """Return until when, by time.monotonic(), a transaction begins further commands.

        That is for some seconds, or half of what its transaction_timeout leaves: its commands share that, and
        the one that it meets seems to have ended the session. So each has half of it at least.

        Args:
            began_at: when the transaction began.
        """
        now = time.monotonic()
        if not self._transaction_timeout:
            return now + seconds
        return now + min(seconds, max(began_at + self._transaction_timeout - now, 0.0) / 2)

    def restore(self, connection: psycopg.Connection[Any]) -> None:
        """Restore what a handler has set on the connection object, whether it succeeded or not.

        If it has ended the claim's transaction, and set how the next ones begin, whatever it has begun since
        is rolled back.

        Raises:
            psycopg.Error: the connection is lost.
        """
        for given, count in self._callbacks:
            del given[count:]
        # One look after each command. By identity: what a handler has set may be equal to anything.
        if all(map(is_, _as_made(connection), self._made)):
            return
        for name, value in self._attributes.items():
            if getattr(connection, name) is not value:
                setattr(connection, name, value)
        modes = {name: value for name, value in self._modes.items() if getattr(connection, name) != value}
        if modes and not connection.closed:
            if connection.info.transaction_status is not TransactionStatus.IDLE:
                self.roll_back()
            for name, value in modes.items():
                setattr(connection, name, value)

    def roll_back(self) -> None:
        """Roll back, also within a block of `transaction()`, where the driver's own rollback is refused.

        Raises:
            psycopg.Error: the connection is lost.
        """
        self._cursor.execute("ROLLBACK", prepare=False)

    def put_back(self, connection: psycopg.Connection[Any]) -> None:
        """Put back the settings that a handler has changed. After a failure that is done by the rollback.

        Raises:
            psycopg.Error: the connection is lost, or cannot put it back.
        """
        # The server reports how it takes text to be sent; in another way a key's name may not come through.
        if self.changed or connection.pgconn.parameter_status(_ENCODING) != self._encoding:
            self.changed = False
            # One round trip, which the driver must not prepare: it is several statements.
            if self._seconds not in self._put_back:
                statements = calls.session.put_back(connection.info.backend_pid, self._seconds)
                self._put_back[self._seconds] = statements.as_bytes(connection)
            self._cursor.execute(self._put_back[self._seconds], prepare=False)

    def is_fit(self) -> bool:
        """Return whether the session can be used for further commands, between two transactions.

        Raises:
            psycopg.Error: the connection is lost.
        """
        if self.worn and not self.spent:
            self.spent = self.call(calls.session.is_littered())
            self.worn = self.spent
        return not self.spent

    def check(self, settings: str) -> None:
        """Compare what the session's settings are now with what they were.

        Raises:
            SessionChanged: they differ: the connection has to be given up.
        """
        # Through a pooler the transactions of a connection have sessions that others have used.
        if settings != self.settings and not self._is_pooled:
            self.worn = self.spent = True
            raise SessionChanged(
                "a command has left the session changed",
                hint=f"It is given up. Its settings are {settings}, and were {self.settings}",
            )


_ATTRIBUTES = ("row_factory", "cursor_factory", "prepare_threshold", "server_cursor_factory")
#: How transactions begin. The driver lets nobody change that while one is open.
_MODES = ("autocommit", "isolation_level", "read_only", "deferrable")
_ENCODING = b"client_encoding"
#: Where the driver keeps what it calls for notices and notifications.
_CALLBACKS = ("_notice_handlers", "_notify_handlers")
_as_made = attrgetter(*_ATTRIBUTES, *_MODES)
#: Of a connection, the attribute that has its Session. Not a dictionary of all of them, even a weak one: a
#: Session has a cursor, which has the connection, so none would ever be forgotten.
_BESIDE = "_inturn_session"


def session_of(connection: psycopg.Connection[Any]) -> Session:
    """Return what is kept beside a connection; made when it is first asked for, before any handler had it."""
    session = _kept_beside(connection)
    if session is None:
        session = vars(connection)[_BESIDE] = Session(connection)
    return session


def _kept_beside(connection: psycopg.Connection[Any]) -> Session | None:
    return vars(connection).get(_BESIDE)
