"""What has to hold before the schema is removed."""

from __future__ import annotations

from sqlalchemy import Connection, inspect, text

from inturn.schema import locks
from inturn.schema.advice import advised
from inturn.schema.errors import CommandsPending
from inturn.schema.source import created_names, script

#: Has locks given up before a deadlock would be found, until the end of the transaction.
BRIEFLY = (
    "SELECT set_config('lock_timeout', greatest(setting::integer / 2, 1)::text, true)"
    " FROM pg_settings WHERE name = 'deadlock_timeout'"
)


def lock_tables(connection: Connection, schema: str) -> None:
    """Keep callers and appliers out until the end of the transaction.

    What callers read and lock first is locked first; appliers lock in other orders. What is locked later in
    the transaction gives up before a deadlock would be found too, so that none of them is ever its victim.

    Raises:
        SchemaInUse: a table was in use the whole time.
    """
    # The receiver's guard and a DBA's own tables may lie beside ours: whoever uses those is not concerned.
    there = {*inspect(connection).get_table_names(schema)}.intersection(created_names(script()))
    tables = sorted(there, key=lambda name: (name != "topic", name != "key_sequence", name))
    names = ", ".join(f"{schema}.{name}" for name in tables)
    lock = text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE")
    what = f"schema {schema} was not downgraded"
    locks.try_until_free(connection, schema, lambda: connection.execute(lock), what)
    connection.execute(text(BRIEFLY))


def check_nothing_pending(connection: Connection, schema: str) -> None:
    """Make sure that every command is applied, and none waits for its number.

    Raises:
        CommandsPending: some key has one that is not.
    """
    pending = connection.execute(
        text(
            f"SELECT count(*) FROM (SELECT topic, key FROM {schema}.arrived_key"  # noqa: S608 - a checked name
            f" UNION SELECT c.topic, c.key FROM {schema}.key_cursor c WHERE EXISTS ("
            f" SELECT FROM {schema}.command_log l"
            " WHERE l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq)) k"
        )
    ).scalar_one()
    if pending:
        raise CommandsPending(
            f"schema {schema} has commands that are not applied, on {pending} key"
            + ("s" if pending > 1 else ""),
            hint=advised("Apply them first (inturn apply --drain), or lose them with --force", schema),
        )
