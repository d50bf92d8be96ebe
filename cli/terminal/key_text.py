"""Keys as people see and type them: what is printed can be given back, and the shell completes it."""

from __future__ import annotations

import re
from typing import Any

import click
from click.shell_completion import CompletionItem
from psycopg import Connection, sql
from psycopg.conninfo import make_conninfo

from inturn.cli import embedded
from inturn.cli.advice import program
from inturn.cli.database import Database
from inturn.cli.terminal.output import escape
from inturn.schema.connection import connect

_MOST_OFFERED = 50
_SECONDS_TO_COMPLETE = 2  # libpq knows no shorter wait for a connection

# What no shell reads as anything else; = is special to zsh as a word's first character.
_PLAIN = re.compile(r"[\w@%+:./-][\w@%+:./=-]*", re.ASCII)
# One character as `escaped` writes it.
_CHARACTER = re.compile(r"[^\\]|\\(?:\\|[ntr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})", re.DOTALL)


def escaped(text: str) -> str:
    """Return text with every backslash doubled, and what is not plainly visible as an escape."""
    return escape(text.replace("\\", "\\\\"))


def quoted(text: str) -> str:
    """Return text as one word of a shell."""
    return text if _PLAIN.fullmatch(text) else "'" + text.replace("'", "'\"'\"'") + "'"


def shown(key: str) -> str:
    """Return the key as commands print it: pasted back into a shell, it names the key again.

    One that begins with a dash needs a -- before it, as with any command.
    """
    return quoted(escaped(key))


def shown_topic(topic: str) -> str:
    """Return the topic as command lines name it: it is taken as it is typed, so no backslash is doubled."""
    return quoted(escape(topic))


def to_paste(command: str, key: str, topic: str | None = None) -> str:
    """Return a whole command line about a key, to be pasted."""
    of_topic = f" --topic {shown_topic(topic)}" if topic is not None else ""
    if key.startswith("-"):
        return f"{program()} {command}{of_topic} -- {shown(key)}"
    return f"{program()} {command} {shown(key)}{of_topic}"


def unescaped(text: str) -> str | None:
    """Return what was escaped, or None when this is not how `escaped` writes anything."""
    start, rest = _unescaped_start(text)
    return start if not rest else None


def resolve(connection: Connection[Any], schema: str, text: str, topic: str | None = None) -> str:
    """Return the key that was typed: as it is printed, or literally if there is no such key.

    Args:
        connection, schema: where to look.
        text: what was typed.
        topic: look in this one only.
    """
    printed = unescaped(text)
    if printed is None or printed == text:
        return text
    exists = sql.SQL(
        "SELECT EXISTS (SELECT FROM {schema}.topic t"
        " WHERE (%(topic)s::text IS NULL OR t.name = %(topic)s) AND ("
        "EXISTS (SELECT FROM {schema}.key_sequence c WHERE c.topic = t.name AND c.key = %(key)s)"
        " OR t.numbering = 'arrival'"
        " AND EXISTS (SELECT FROM {schema}.arrived_key a WHERE a.topic = t.name AND a.key = %(key)s)))"
    ).format(schema=sql.Identifier(schema))
    try:
        found = connection.execute(exists, {"key": printed, "topic": topic}).fetchone()
    except UnicodeEncodeError:  # bytes that are not text, which only a database in SQL_ASCII has
        return text
    return printed if found and found[0] else text


class _Completed(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """Text that the shell completes from the database, where that answers quickly."""

    #: Asks with %(start)s and %(topic)s.
    query: str

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002 - click's signature
        incomplete: str,
    ) -> list[CompletionItem]:
        start, _ = _unescaped_start(incomplete)
        try:
            found = self._ask(ctx, start)
        except Exception:  # noqa: BLE001 - whatever it is, nobody can read it while a key is pressed
            return []
        texts = [escaped(text) for text in found]
        return [CompletionItem(text) for text in texts if text.startswith(incomplete)][:_MOST_OFFERED]

    def _ask(self, ctx: click.Context, start: str) -> list[str]:
        given = ctx.find_root().params
        database = Database(given.get("dsn"), given.get("schema") or "inturn")
        if not database.named and embedded.find(seconds=0) is None:
            return []  # it is not started for this
        pattern = re.sub(r"([\\%_])", r"\\\1", start) + "%"
        conninfo = make_conninfo(database.conninfo, connect_timeout=_SECONDS_TO_COMPLETE)
        with connect(conninfo, autocommit=False) as connection:
            connection.execute(f"SET LOCAL statement_timeout = '{_SECONDS_TO_COMPLETE}s'")
            rows = connection.execute(
                sql.SQL(self.query).format(schema=sql.Identifier(database.schema)),
                {"start": pattern, "topic": ctx.params.get("topic"), "most": _MOST_OFFERED},
            ).fetchall()
        return [text for (text,) in rows]


class KeyParam(_Completed):
    """A key as it was typed, for `resolve`."""

    name = "key"
    # A topic at a time, each a walk of its part of the primary key.
    query = """
        SELECT DISTINCT c.key FROM {schema}.topic t CROSS JOIN LATERAL (
            SELECT c.key FROM {schema}.key_sequence c WHERE c.topic = t.name AND c.key LIKE %(start)s
            ORDER BY c.key LIMIT %(most)s) c
        WHERE %(topic)s::text IS NULL OR t.name = %(topic)s ORDER BY 1 LIMIT %(most)s"""


class TopicParam(_Completed):
    """A topic."""

    name = "topic"
    query = """
        SELECT name FROM {schema}.topic
        WHERE name LIKE %(start)s ORDER BY 1 LIMIT %(most)s"""


KEY = KeyParam()
TOPIC = TopicParam()


def _unescaped_start(text: str) -> tuple[str, str]:
    """Return what the whole escapes at the beginning of the text stand for, and the rest of the text."""
    characters, end = [], 0
    while found := _CHARACTER.match(text, end):
        character = _character(found[0])
        if character is None:
            break
        characters.append(character)
        end = found.end()
    return "".join(characters), text[end:]


def _character(text: str) -> str | None:
    if len(text) == 1:
        return text
    try:
        character = text.encode().decode("unicode_escape")
        character.encode("utf-8", "surrogateescape")
    except UnicodeError:  # half of a pair, or beyond the last
        return None
    return character if character != "\0" else None
