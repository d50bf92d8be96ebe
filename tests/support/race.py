"""Races laid out step by step: turns taken by hand, and statements that end or block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from support.database import Database, Session, until
from support.roles import OWNER

APPEND = "SELECT inturn.append('orders', %s, 'insert')"


def append(session: Session | Database, key: str) -> int:
    """Append a command to a key of topic orders and return its seq."""
    seq: int = session.execute(APPEND, [key])[0][0]
    return seq


def blocked(database: Database, session: Session, running: Future[Any]) -> bool:
    """Wait until a session's statement has ended (False) or waits for a lock (True)."""
    found: str = until(
        lambda: (
            (running.done() and "ended")
            or (database.value("SELECT cardinality(pg_blocking_pids(%s))", [session.pid]) and "blocked")
        ),
        f"session {session.pid} ended its statement or blocked",
    )
    return found == "blocked"


def kill(database: Database, session: Session, running: Future[Any] | None = None) -> None:
    """Terminate a session's backend, let its running statement end, and close it.

    Without the server's own wait, which looks every 100 ms.
    """
    database.execute("SELECT pg_terminate_backend(%s)", [session.pid])
    until(
        lambda: not database.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [session.pid]),
        f"session {session.pid} gone",
    )
    if running is not None:
        error = running.exception()
        assert error is None or isinstance(error, psycopg.OperationalError), error
    session.close()


def unblocked(database: Database, session: Session, query: str, parameters: list[Any]) -> list[Any]:
    """Run a statement that must not wait for anybody, and return its rows."""
    running = session.begin(query, parameters)
    assert not blocked(database, session, running), "waits for a lock"
    return running.result()


@dataclass(frozen=True)
class Turn:
    """A claim, as an applier that speaks SQL holds it."""

    key: str
    applied_seq: int
    epoch: int

    @classmethod
    def claim(cls, database: Database, session: Session, max_keys: int = 1) -> list[Turn]:
        rows = unblocked(
            database,
            session,
            "SELECT key, applied_seq, epoch FROM inturn.claim('orders', max_keys => %s)",
            [max_keys],
        )
        return [cls(*row) for row in rows]

    def finish(self, applied_seq: int) -> tuple[str, list[Any]]:
        """Return the statement, with parameters, that ends the turn."""
        return (
            "SELECT inturn.finish('orders', %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], 'me')",
            [[self.key], [self.epoch], [self.applied_seq + 1], [applied_seq]],
        )

    def fail(self, failed_seq: int) -> tuple[str, list[Any]]:
        """Return the statement, with parameters, that ends the turn with a failed command."""
        return (
            "SELECT inturn.fail('orders', %s, %s, %s, %s, 'failed by hand', 'me')",
            [self.key, self.epoch, self.applied_seq + 1, failed_seq],
        )

    def effects(self, session: Session, applied_seq: int) -> None:
        """Do what the target does for its commands."""
        session.execute(
            "INSERT INTO app.witness (key, seq, name)"
            " SELECT %s, seq, 'insert' FROM generate_series(%s::bigint, %s) seq",
            [self.key, self.applied_seq + 1, applied_seq],
        )


_GATE = """
    CREATE FUNCTION app.gate_pass() RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock_shared(4242);
        RETURN true;
    END $$
"""


def replace_in(database: Database, function: str, *edits: tuple[str, str]) -> None:
    """Put an edited copy in the place of one of the schema's functions.

    Every edit is a pattern, which has to match once or the edit is out of date, and its replacement.
    A function that shares its name is named with its arguments.
    """
    how = "regprocedure" if "(" in function else "regproc"
    definition: str = database.value(f"SELECT pg_get_functiondef(%s::{how})", [f"inturn.{function}"])
    for pattern, new in edits:
        # Wherever the function's lines are broken; a lookbehind, which has to have a width, stays as it is.
        behind = re.match(r"\(\?<[=!][^)]*\)|", pattern)
        assert behind
        anywhere = behind[0] + re.sub(" +", r"\\s+", pattern[behind.end() :])
        definition, times = re.subn(anywhere, lambda _, new=new: new, definition, flags=re.DOTALL)  # type: ignore[misc]
        assert times == 1, f"{pattern!r} is {times} times in {function}"
    database.execute(definition)


@contextmanager
def replaced(database: Database, function: str, *edits: tuple[str, str]) -> Iterator[None]:
    """Have an edited copy in the place of a function while the block runs: see `replace_in`."""
    before: str = database.value("SELECT pg_get_functiondef(%s::regproc)", [f"inturn.{function}"])
    replace_in(database, function, *edits)
    try:
        yield
    finally:
        database.execute(before)


@contextmanager
def gate_shut(database: Database) -> Iterator[None]:
    """Keep app.gate_pass() waiting while the block runs."""
    with database.connect(user=OWNER) as keeper:
        keeper.execute("SELECT pg_advisory_lock(4242)")
        yield


def put_gate(database: Database) -> None:
    """Create app.gate_pass()."""
    database.execute(_GATE)
