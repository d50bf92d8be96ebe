"""What a check is given, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, LiteralString, NamedTuple, TypeAlias

from psycopg import Connection, sql

from inturn.cli.terminal.rows import Row, fetch

Level: TypeAlias = Literal["error", "warning"]


class Finding(NamedTuple):
    """Something that is not as it should be.

    Attributes:
        level: error: promises, or the work of appliers, are in danger now; warning: it will hurt some day.
        says: what is wrong, in a sentence.
        do: what to do about it.
        sql: statements that put it right, for the schema's owner; empty where there are none.
    """

    level: Level
    says: str
    do: str
    sql: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """The database that is looked at.

    Attributes:
        connection: in autocommit.
        long_seconds: from how long on a transaction is a long one.
    """

    connection: Connection[Any]
    schema: str
    long_seconds: float

    def rows(self, query: LiteralString, *parameters: object) -> list[Row]:
        """Run a query, with {schema} put in; {{ and }} stand for braces."""
        return fetch(self.connection, sql.SQL(query).format(schema=sql.Identifier(self.schema)), parameters)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Run a query of our own without parameters."""
        return self.connection.execute(query.encode()).fetchall()

    def setting(self, name: str) -> str:
        """Return a setting as this session has it; empty where the server does not know it."""
        rows = self.rows("SELECT coalesce(current_setting(%s, true), '') AS value", name)
        return str(rows[0]["value"])


class Check(NamedTuple):
    """One check.

    Attributes:
        name: stable, for machines.
        find: yields what it finds.
        installed: it needs the schema, of this revision.
    """

    name: str
    find: Callable[[Facts], Iterator[Finding]]
    installed: bool = True
