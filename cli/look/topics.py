"""A topic that a command names."""

from __future__ import annotations

from typing import Any

from psycopg import Connection, sql

from inturn.schema.errors import UnknownTopic


def require_topic(connection: Connection[Any], schema: str, topic: str) -> None:
    """Make sure that the topic exists.

    Raises:
        UnknownTopic: it does not.
    """
    found = connection.execute(
        sql.SQL("SELECT FROM {}.topic WHERE name = %s").format(sql.Identifier(schema)), (topic,)
    ).fetchone()
    if found is None:
        raise UnknownTopic(
            f"topic '{topic}' does not exist", hint="List them with: inturn topic list", topic=topic
        )
