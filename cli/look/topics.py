"""The topic that a command names, and those that are not this login's to see."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from psycopg import Connection, sql

from inturn.cli.advice import advised
from inturn.cli.terminal.key_text import shown, shown_topic
from inturn.cli.terminal.output import echo
from inturn.schema.errors import UnknownTopic

#: How many topics are named of those that are not shown.
_NAMED = 5


def no_topics() -> str:
    """Return what is said where no topic was ever created."""
    return advised("inturn: no topics yet. Create one with: inturn topic create NAME")


def require_topic(connection: Connection[Any], schema: str, topic: str) -> None:
    """Make sure that the topic exists.

    Raises:
        UnknownTopic: it does not.
    """
    names = sql.SQL("SELECT name FROM {}.topic").format(sql.Identifier(schema))
    if connection.execute(names + sql.SQL(" WHERE name = %s"), (topic,)).fetchone() is not None:
        return
    near = get_close_matches(topic, [name for (name,) in connection.execute(names)], n=1)
    meant = f". Did you mean {shown_topic(near[0])}?" if near else ""
    raise UnknownTopic(
        f"topic '{topic}' does not exist{meant}", hint="List them with: inturn topic list", topic=topic
    )


def require_sight(connection: Connection[Any], schema: str, topic: str) -> None:
    """Make sure that this login may see the keys of the topic.

    Raises:
        UnknownTopic: it does not exist.
        psycopg.Error: it is granted to other operators only.
    """
    require_topic(connection, schema, topic)
    # Of no key, and none of it: the function refuses as everything does that looks into a topic.
    asks = sql.SQL("SELECT FROM {}.timeline(%s, '', 0)").format(sql.Identifier(schema))
    connection.execute(asks, (topic,))


def hidden_topics(connection: Connection[Any], schema: str) -> list[str]:
    """Return the topics whose keys this login may not see: they are granted to other operators only.

    Raises:
        psycopg.Error: the database refused.
    """
    query = sql.SQL("SELECT {}._hidden_topics()").format(sql.Identifier(schema))
    row = connection.execute(query).fetchone()
    return list(row[0]) if row else []


def say_hidden_topics(
    connection: Connection[Any], schema: str, topic: str | None = None, *, quiet: bool = False
) -> None:
    """Say in a line on stderr which topics are left out, unless one was named.

    Raises:
        psycopg.Error: the database refused.
    """
    if quiet or topic is not None:
        return
    if hidden := hidden_topics(connection, schema):
        named = ", ".join(map(shown, hidden[:_NAMED])) + (", ..." if len(hidden) > _NAMED else "")
        count = "1 topic is" if len(hidden) == 1 else f"{len(hidden)} topics are"
        echo(f"inturn: {count} not shown, granted to other operators only: {named}", err=True)
