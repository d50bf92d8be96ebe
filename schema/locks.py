"""Locks on tables that are in use: asked for briefly, again and again, so that nobody queues behind them."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from inturn.schema.errors import SchemaInUse

#: How long an upgrade asks for its locks before it gives up, in seconds.
PATIENCE = 60.0
#: How much longer callers have the tables to themselves between two tries than they may have had to wait.
_PAUSE = 3
_LOCK_NOT_AVAILABLE = "55P03"


def try_until_free(
    connection: Connection,
    schema: str,
    change: Callable[[], object],
    what: str = "schema {} was not upgraded",
) -> None:
    """Change the schema, again from the start when a lock on a table cannot be had in time.

    A lock is waited for for a quarter of deadlock_timeout, 250 ms by default: those who queue behind it wait
    no longer, and no deadlock with them is ever found, whose victim one of them would be. What was done and
    locked until then is undone by a savepoint.

    Args:
        connection, schema: in whose transaction, and of what, the locks are.
        change: what takes them.
        what: has not come about where they cannot be had; {} stands for the schema.

    Raises:
        SchemaInUse: a table was in use the whole time.
        sqlalchemy.exc.DBAPIError: the database refused.
    """
    give_up_at = time.monotonic() + PATIENCE
    ask = text("SELECT greatest(setting::integer / 4, 1) FROM pg_settings WHERE name = 'deadlock_timeout'")
    milliseconds = connection.execute(ask).scalar_one()
    before = connection.scalar(text("SELECT current_setting('lock_timeout')"))
    put = text("SELECT set_config('lock_timeout', :value, true)")
    while True:
        try:
            with connection.begin_nested():
                connection.execute(put, {"value": f"{milliseconds}ms"})
                change()
                connection.execute(put, {"value": before})
        except DBAPIError as error:
            if _sqlstate(error) != _LOCK_NOT_AVAILABLE:
                raise
            if time.monotonic() > give_up_at:
                raise _in_use(connection, schema, what.format(schema)) from None
        else:
            return
        time.sleep(_PAUSE * milliseconds / 1000)


def _sqlstate(error: DBAPIError) -> str | None:
    """Return the SQLSTATE, whatever the driver calls it."""
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)


def _in_use(connection: Connection, schema: str, what: str) -> SchemaInUse:
    holders = connection.execute(
        text("""
            SELECT h.name FROM (
                SELECT a.pid::text, a.xact_start, format(
                    'backend %s%s', a.pid, coalesce(' (' || nullif(a.application_name, '') || ')', ''))
                FROM pg_stat_activity a WHERE a.pid <> pg_backend_pid()
                UNION ALL
                -- Its locks name no session.
                SELECT x.virtualtransaction, p.prepared, format('prepared transaction %L', p.gid)
                FROM pg_prepared_xacts p JOIN pg_locks x ON x.transactionid = p.transaction AND x.pid IS NULL
                WHERE p.database = current_database()) h (holder, since, name)
            WHERE EXISTS (
                SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
                WHERE coalesce(l.pid::text, l.virtualtransaction) = h.holder
                AND l.granted AND c.relnamespace = to_regnamespace(:schema)
                AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
            ORDER BY h.since LIMIT 3
        """),
        {"schema": schema},
    )
    names = ", ".join(name for (name,) in holders) or "sessions that have ended since"
    return SchemaInUse(
        f"{what}: its tables were in use for {PATIENCE:.0f} s, the longest by {names}",
        hint="Nothing was changed. Let that end, or end it, and run this again",
    )
