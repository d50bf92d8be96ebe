"""Functions of somebody else as targets and as what merges: whose code runs with whose rights."""

from __future__ import annotations

from typing import Any

import psycopg

from support.database import Database

OWNER_CHANGED = "IT013"
MERGE = "SELECT inturn.merge_rule('orders', 'a', 'b', 'sql:app.combine')"


def open_to_all(witness: Database) -> None:
    """Let everybody run the target of a witness database; add a function that merges, and a command on x."""
    witness.execute("""
        GRANT USAGE ON SCHEMA app TO PUBLIC;
        GRANT ALL ON ALL TABLES IN SCHEMA app TO PUBLIC;
        GRANT ALL ON ALL SEQUENCES IN SCHEMA app TO PUBLIC;
        CREATE FUNCTION app.combine(first inturn.command, second inturn.command) RETURNS jsonb
            LANGUAGE sql AS 'SELECT first.payload || second.payload';
        SELECT inturn.append('orders', 'x', 'insert');
    """)


def create_mallory(database: Database) -> str:
    """Create a role that may create in app, and return its name."""
    name = f"mallory_{database.name}"
    database.execute(f"CREATE ROLE {name} IN ROLE inturn_caller; GRANT CREATE, USAGE ON SCHEMA app TO {name}")
    return name


def warnings_of(connection: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """Return the list of warnings that the session gets from now on: SQLSTATE and message."""
    warnings: list[tuple[str, str]] = []

    def note(said: psycopg.errors.Diagnostic) -> None:
        if said.severity_nonlocalized == "WARNING":
            warnings.append((said.sqlstate or "", said.message_primary or ""))

    connection.add_notice_handler(note)
    return warnings
