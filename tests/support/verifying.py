"""`verify` called as the command calls it, and what plants violations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support.database import Database, Session

# What would refuse the plants; a superuser could have dropped it too.
NO_CONSTRAINTS = """
DO $$ DECLARE c record; BEGIN
    FOR c IN SELECT conname, conrelid::regclass AS name FROM pg_constraint
             WHERE connamespace = 'inturn'::regnamespace AND contype IN ('p', 'c') AND conrelid <> 0 LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.name, c.conname);
    END LOOP;
END $$
"""
OF_A = "topic = 'orders' AND key = 'a'"


# Written straight into the tables, as the protocol leaves them.
LOAD = """
WITH given (prefix, keys, commands) AS (VALUES (%s, %s, %s)
), command AS (
    INSERT INTO inturn.command_log (topic, key, seq, name, payload)
    SELECT 'orders', prefix || k, s, 'update', jsonb_build_object('amount', s)
    FROM given, generate_series(1, keys) k, generate_series(1, commands) s
), sequence AS (
    INSERT INTO inturn.key_sequence (topic, key)
    SELECT 'orders', prefix || k FROM given, generate_series(1, keys) k
)
INSERT INTO inturn.turn (
    topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier, started_at)
SELECT 'orders', prefix || k, s, s, s, s, s = commands, 'applied', 'me', now()
FROM given, generate_series(1, keys) k, generate_series(1, commands) s
"""


@contextmanager
def undone(session: Session) -> Iterator[None]:
    """Undo, at the end of the block, what a session did in it."""
    session.execute("SAVEPOINT before")
    yield
    session.execute("ROLLBACK TO before")


def verified(database: Database | Session, commands_a_slice: int = 50_000) -> list[tuple[Any, ...]]:
    """Verify everything, slice by slice, as the command does."""
    found = []
    for (topic,) in database.execute("SELECT inturn.verify_topics()"):
        from_key = ""
        while from_key is not None:
            to_key, next_key = database.execute(
                "SELECT to_key, next_key FROM inturn.verify_slice(%s, %s, %s)",
                [topic, from_key, commands_a_slice],
            )[0]
            found += database.execute("SELECT * FROM inturn.verify(%s, %s, %s)", [topic, from_key, to_key])
            from_key = next_key
    return found
