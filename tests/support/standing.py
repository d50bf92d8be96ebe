"""A SQL target that has its command in hand until a test lets it go on, whatever becomes of its client."""

from __future__ import annotations

from support.database import Database

_STANDS = 4243

#: What it does on the bad command. Each session stands there once for each command.
STAND = f"""
    PERFORM pg_advisory_xact_lock_shared({_STANDS}, command.seq::integer);
    WHILE NOT EXISTS (SELECT FROM bad.let_go g WHERE (g.pid, g.seq) = (pg_backend_pid(), command.seq)) LOOP
        PERFORM pg_sleep(0.005);
    END LOOP;
"""
_STANDING = f"""
    SELECT l.pid, l.objid::bigint FROM pg_locks l JOIN pg_database d ON d.oid = l.database
    WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.classid = {_STANDS}
    EXCEPT SELECT g.pid, g.seq FROM bad.let_go g
"""


def prepare(database: Database) -> None:
    """Make what it looks at; the schema `bad` is there."""
    database.execute("CREATE TABLE bad.let_go (pid integer, seq bigint)")


def stands(database: Database) -> bool:
    """Return whether a session has its command in hand."""
    return bool(database.execute(_STANDING))


def let_go(database: Database) -> None:
    """Let every session go on that stands there now."""
    database.execute(f"INSERT INTO bad.let_go {_STANDING}")
