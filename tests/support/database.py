"""A database of a test's own, and sessions in it that may block."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psycopg
from psycopg.pq import TransactionStatus

from inturn.schema.source import revision_sql
from support import roles
from support.statements import is_setting, login_of

if TYPE_CHECKING:  # an applier's process imports this module
    from support.server import Server

#: How long a condition that has to come may take, in seconds; only a broken test waits it out.
PATIENCE = 60.0
#: The most that one asking uses up of it: while the test itself stands still, so may everything else.
_MOST_OF_IT = 0.1
#: How long it waits before it asks again, in seconds: at first, and by how much longer each time, up to what.
_PAUSE, _LONGER, _LONGEST_PAUSE = 0.002, 1.2, 0.1


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Ask until the condition holds and return what it gave; the asking is not the synchronisation."""
    left, pause = patience, _PAUSE
    while left > 0:
        asked_at = time.monotonic()
        if found := condition():
            return found
        time.sleep(pause)
        pause = min(pause * _LONGER, _LONGEST_PAUSE)
        left -= min(time.monotonic() - asked_at, _MOST_OF_IT)
    raise AssertionError(f"did not come within {patience:.0f} s: {what}")


def come_first(database: Database, key: str) -> None:
    """Make the key the first that any claim finds.

    Nothing but a test makes a key due in the past, so a saved pass, which begins where the last
    one ended, would not see it: the next claim looks at everything.
    """
    database.execute("UPDATE inturn.key_cursor SET ready_at = '2000-01-01' WHERE key = %s", [key])
    database.execute("DELETE FROM inturn.saved_pass")


class Session:
    """A connection with a thread of its own, for statements that may block.

    It connects when it has something to do, as the role whose its first statement is, see
    `statements.login_of`, unless a user is named.
    """

    def __init__(self, database: Database, *, autocommit: bool = False, **parameters: Any) -> None:
        self._open = partial(database.connect, autocommit=autocommit, pooled=True, **parameters)
        self._connection: psycopg.Connection[Any] | None = None
        self._pid = 0
        self._settings: list[tuple[str, Sequence[Any] | None]] = []
        self._pooled = database.goes_through_pooler(parameters)
        self._knows_pid = not self._pooled
        self._database = database
        self._thread = ThreadPoolExecutor(1, "session")

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """Its connection: the owner's, if it has run no statement yet."""
        return self._connected()

    @property
    def pid(self) -> int:
        """Of its backend; through a pooler that of the transaction that is open, or was the last."""
        self._connected()
        return self._pid

    def _connected(self, login: str = roles.OWNER) -> psycopg.Connection[Any]:
        if self._connection is None:
            self._connection = self._open(user=self._open.keywords.get("user", login))
            self._pid = self._connection.info.backend_pid
            for setting, parameters in self._settings:
                self._connection.execute(setting, parameters)
        return self._connection

    def execute(self, query: str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """Run a statement to its end and return its rows."""
        if self._connection is None and is_setting(query):
            self._settings.append((query, parameters))  # of whoever the next statement's is
            return []
        self._connected(login_of(query))
        self._learn_pid(query)
        cursor = self.connection.execute(query, parameters)
        return [] if cursor.description is None else cursor.fetchall()

    def begin(self, query: str, parameters: Sequence[Any] | None = None) -> Future[list[tuple[Any, ...]]]:
        """Start a statement in the session's thread, for `wait_blocked` or the future's result."""
        self._connected(login_of(query))
        self._learn_pid(query)  # now: who waits for it has to know its backend
        return self._thread.submit(self.execute, query, parameters)

    def _learn_pid(self, query: str) -> None:
        """Through a pooler, ask at its beginning which backend a transaction has."""
        if not self._pooled:
            return
        if self.connection.info.transaction_status is TransactionStatus.IDLE:
            self._knows_pid = False
        if not self._knows_pid and not query.startswith("SET "):
            self._pid = self.connection.execute("SELECT pg_backend_pid()").fetchall()[0][0]
            self._knows_pid = True

    def wait_blocked(self) -> list[int]:
        """Wait until the running statement waits for a lock; return the pids that hold it."""
        return cast(
            list[int],
            until(
                lambda: self._database.execute("SELECT pg_blocking_pids(%s)", [self.pid])[0][0],
                f"session {self.pid} blocked",
            ),
        )

    def commit(self) -> None:
        self.connection.commit()

    def rollback(self) -> None:
        self.connection.rollback()

    def kill(self) -> None:
        """Terminate its backend and wait until it is gone."""
        self._database.execute("SELECT pg_terminate_backend(%s, 10000)", [self.pid])

    def close(self) -> None:
        """Close its connection; a statement that still blocks would keep the thread."""
        if self._connection is not None:
            if not self._connection.closed:
                with suppress(psycopg.OperationalError):  # its server may be gone
                    self._connection.cancel_safe()
            self._connection.close()
        self._thread.shutdown(wait=True)


class Database:
    """A fresh database of the owner's; everything opened through it is closed with it.

    Attributes:
        dsn: the owner's; a process of inturn that is given it connects as its command does, see
            `roles.LOGIN_OF`.
    """

    def __init__(
        self, server: Server, name: str, *, template: str | None = None, create: bool = True
    ) -> None:
        self.server = server
        self.name = name
        if create:
            # A third of what the default takes: the write-ahead log is not written, block by block.
            of = f" TEMPLATE {template} STRATEGY file_copy" if template else ""
            server.administer(f"CREATE DATABASE {name} OWNER {roles.OWNER}{of}")
        self.dsn = server.pooler.dsn(name) if server.pooler else server.dsn(name)
        self._connections: list[psycopg.Connection[Any]] = []
        self._sessions: list[Session] = []
        #: By login, for what the test itself does.
        self._own: dict[str, psycopg.Connection[Any]] = {}
        self._settings: list[tuple[str, Sequence[Any] | None]] = []

    def connect(
        self, *, user: str, autocommit: bool = True, pooled: bool = False, **parameters: Any
    ) -> psycopg.Connection[Any]:
        """Return a new connection of a login, which is named: the owner's too, where a test is the installer.

        pooled: through the run's pooler, where it has one that takes it.
        """
        dsn = self.dsn if pooled else self.server.dsn(self.name)
        if pooled and self.goes_through_pooler(parameters):
            parameters.setdefault("prepare_threshold", None)
        elif self.server.pooler is not None:
            dsn = self.server.dsn(self.name)
        connection = psycopg.connect(dsn, autocommit=autocommit, user=user, **parameters)
        self._connections.append(connection)
        return connection

    def goes_through_pooler(self, parameters: Mapping[str, Any]) -> bool:
        """Return whether a connection with these parameters does: PgBouncer refuses settings of a session."""
        return self.server.pooler is not None and "options" not in parameters

    @property
    def caller_dsn(self) -> str:
        """The connection string of who appends."""
        return roles.as_role(self.dsn, roles.CALLER)

    @property
    def applier_dsn(self) -> str:
        """The connection string of who applies."""
        return roles.as_role(self.dsn, roles.APPLIER)

    @property
    def operator_dsn(self) -> str:
        """The connection string of who operates."""
        return roles.as_role(self.dsn, roles.OPERATOR)

    @property
    def owner_dsn(self) -> str:
        """The connection string of the owner, also for a process of inturn whose command is another's."""
        return self.dsn.replace(f"user={roles.OWNER}", f"user='{roles.OWNER}'")

    def as_superuser(self) -> str:
        """Return the connection string of a superuser, for a test of what inturn does as one."""
        return roles.as_role(self.dsn, roles.SUPERUSER)

    def administer(self, query: str, parameters: Sequence[Any] | None = None) -> None:
        """Run a statement as the tests' administrator, a superuser: what no login of inturn may do."""
        with self.server.connect(self.name) as admin:
            admin.execute(query, parameters)

    def install(self) -> None:
        """Install the schema; callers and appliers may use the tables that the owner makes from now on."""
        # An applier's process imports this module, and Alembic logs when it is imported.
        from inturn.schema.install import upgrade

        upgrade(self.server.dsn(self.name))
        self.execute(roles.THEIR_TABLES)

    def session(self, **parameters: Any) -> Session:
        """Return a new session, in a transaction from its first statement on."""
        session = Session(self, **parameters)
        self._sessions.append(session)
        return session

    def execute(self, query: str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """Run a statement in autocommit and return its rows: as the role whose it is, see `login_of`."""
        if is_setting(query):
            for login in {*self._own} - {roles.OWNER}:
                self.as_login(login).execute(query, parameters)
        cursor = self.as_login(login_of(query)).execute(query, parameters)
        if is_setting(query):
            self._settings.append((query, parameters))
        return [] if cursor.description is None else cursor.fetchall()

    def as_login(self, login: str) -> psycopg.Connection[Any]:
        """Return the database's own connection of a login, with what was set in the others."""
        connection = self._own.get(login)
        if connection is None or connection.closed:
            connection = self._own[login] = self.connect(user=login)
            for setting, parameters in self._settings:
                connection.execute(setting, parameters)
        return connection

    def reconnect(self) -> None:
        """Let its own connections be made anew: the server is another now."""
        for connection in self._own.values():
            connection.close()
        self._own.clear()

    def value(self, query: str, parameters: Sequence[Any] | None = None) -> Any:
        """Run a statement in autocommit and return the first column of its first row."""
        return self.execute(query, parameters)[0][0]

    @contextmanager
    def beside(self, work: Callable[[], Any]) -> Iterator[Future[Any]]:
        """Do something in a thread of its own meanwhile; what it raises is raised at the end."""
        with ThreadPoolExecutor(1, "beside") as thread:
            future = thread.submit(work)
            yield future
            future.result(PATIENCE)

    def close(self) -> None:
        """Close everything that was opened through it."""
        for session in self._sessions:
            session.close()
        for connection in self._connections:
            connection.close()

    def drop(self) -> None:
        self.close()
        self.server.drop(self.name)


def set_revision(database: Database, revision: str) -> None:
    """Have the schema say that it is at another revision, and compatible with none before it."""
    database.execute(revision_sql(revision))
    database.execute(
        f"CREATE OR REPLACE VIEW inturn.compatible_since AS SELECT '{revision}'::text AS version_num"
    )


def wait_transactions_over(database: Database) -> None:
    """Wait until every transaction that is open in the database now has ended.

    Those that come after see all that was committed before.
    """
    (now,) = database.execute("SELECT clock_timestamp()")[0]
    until(
        lambda: (
            not database.value(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start <= %s",
                [now],
            )
        ),
        "the end of the transactions that were open",
    )


def wait_at_rest(database: Database) -> None:
    """Wait until the server has done all that its clients have sent, also one that has stopped since.

    The system wakes a session when something comes for it, whenever it then gets to work.
    """
    others = (
        "SELECT pid, state FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )

    def sleeps(pid: int) -> bool:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"

    until(
        lambda: all(state != "active" and sleeps(pid) for pid, state in database.execute(others)),
        "sessions at rest",
    )
