"""What operators see of keys, and refusals that change nothing."""

from __future__ import annotations

from typing import Any

from support.database import Database
from support.refusal import refusal

NO_KEY, REFUSED, BUSY, NO_REASON = "IT040", "IT041", "IT042", "IT043"


def put(database: Database, key: str, *names: str) -> None:
    for name in names:
        database.execute("SELECT inturn.append('orders', %s, %s)", [key, name])


def apply(database: Database) -> None:
    database.execute("CALL inturn.apply()")


def applied(database: Database) -> bool:
    """Apply what is ready, as often as a condition is asked for."""
    apply(database)
    return True


def hold(database: Database, key: str = "x") -> None:
    """Three commands on the key, held at the second."""
    put(database, key, "insert", "fail", "delete")
    apply(database)
    assert state(database, key) == ("held", 1)


def state(database: Database, key: str) -> tuple[str, int]:
    (row,) = database.execute(
        "SELECT inturn.key_state(c), applied_seq FROM inturn.key_cursor c WHERE key = %s", [key]
    )
    return row[0], row[1]


def effects(database: Database, key: str = "x") -> list[int]:
    return [
        seq for (seq,) in database.execute("SELECT seq FROM app.witness WHERE key = %s ORDER BY id", [key])
    ]


def skips(database: Database, key: str = "x") -> list[tuple[Any, ...]]:
    return database.execute(
        "SELECT seq, epoch, skipped_by, reason FROM inturn.skip WHERE key = %s ORDER BY seq", [key]
    )


def actions(database: Database) -> list[tuple[Any, ...]]:
    return database.execute(
        "SELECT action, key, seq, reason, before ->> 'state', after ->> 'state'"
        " FROM inturn.operator_action WHERE action <> 'create' ORDER BY acted_at"
    )


def refuse(database: Database, sqlstate: str, query: str) -> str:
    """Run a statement that has to be refused; nothing is recorded or changed. Return the message."""
    look = (
        "SELECT (SELECT json_agg(c) FROM inturn.key_cursor c)::text,"
        " (SELECT json_agg(t) FROM inturn.topic t)::text"
    )
    before = (
        database.execute(look),
        len(actions(database)),
        database.value("SELECT count(*) FROM inturn.skip"),
    )
    error = refusal(database, query)
    assert error.sqlstate == sqlstate, error
    after = database.execute(look), len(actions(database)), database.value("SELECT count(*) FROM inturn.skip")
    assert after == before
    assert error.hint
    return str(error.message)
