"""What the schema's owner may see of other users' sessions, on a server that grants no pg_monitor."""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from inturn.cli.terminal.output import echo

_OWNER = """
    SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(nspowner)) FROM pg_catalog.pg_namespace
    WHERE nspname = %s AND NOT pg_catalog.pg_has_role(nspowner, 'pg_read_all_stats', 'USAGE')"""


def say_what_is_hidden(connection: Connection[Any], schema: str, *, quiet: bool = False) -> None:
    """Say in a line on stderr that other users' sessions are hidden, and what to grant, where that is so.

    Raises:
        psycopg.Error: the database refused.
    """
    if quiet:
        return
    for (owner,) in connection.execute(_OWNER, [schema]):
        echo(
            "inturn: what sessions of other users do is not shown, because the schema's owner may not see it."
            f" A DBA may allow it: GRANT pg_monitor TO {owner}",
            err=True,
        )
