"""The SQL of the schema as it stands today: the files of sql/, in the manifest's order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files

from inturn.schema import advice
from inturn.schema.errors import SchemaNameRefused

DEFAULT_SCHEMA = advice.DEFAULT_SCHEMA

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")
# What others lie in. inturn takes PUBLIC's rights on its schema away.
_TAKEN = frozenset({"public", "information_schema"})
# Where the files name the schema: before a dot, after the word SCHEMA, and in the names of the roles.
_MENTION = re.compile(
    r"(?<=SCHEMA )inturn\b|\binturn(?=\.)|\binturn(?=_(?:caller|applier|operator|admin|receiver)\b)"
)
# What a semicolon does not end a statement in, and what ends it.
_PIECE = re.compile(
    r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"[^\"]*\"|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|(?P<end>;)", re.DOTALL
)
# What a statement creates is the first name of the schema on its first line (of an index: its table).
_CREATED = re.compile(r"^CREATE .*?\binturn\.(\w+)", re.MULTILINE)
# The same for what lies in the schema itself, with its kind.
_OBJECT = re.compile(
    r"^CREATE (?:OR REPLACE )?(?:UNLOGGED )?(TABLE|VIEW|TYPE|DOMAIN|FUNCTION|PROCEDURE) inturn\.(\w+)",
    re.MULTILINE,
)

# What takes a lock on a table that is there that callers or appliers wait for.
_CHANGED = re.compile(
    r"^(?:ALTER|DROP) TABLE (?:IF EXISTS )?(?:ONLY )?inturn\.(\w+)"
    r"|^CREATE (?:UNIQUE INDEX|INDEX|TRIGGER|CONSTRAINT TRIGGER)\b[^;]*?\bON (?:ONLY )?inturn\.(\w+)",
    re.MULTILINE,
)


def check_schema_name(schema: str) -> str:
    """Return the name unchanged.

    Raises:
        SchemaNameRefused: it is not a plain identifier. The SQL is text in which the name is put in
            place, in strings and messages too, so it may hold nothing that needs quoting there.
    """
    if isinstance(schema, str) and (schema in _TAKEN or schema.startswith("pg_")):
        raise SchemaNameRefused(
            f"schema name {schema!r} cannot be used: it is PostgreSQL's, or everybody's",
            hint="Give inturn a schema of its own. "
            "Use 1 to 40 of a-z, 0-9 and _, not beginning with a digit or pg_",
        )
    if not (isinstance(schema, str) and _NAME.fullmatch(schema)):
        raise SchemaNameRefused(
            f"schema name {schema!r} cannot be used",
            hint="Use 1 to 40 of a-z, 0-9 and _, not beginning with a digit or pg_",
        )
    return schema


def rename(sql: str, schema: str) -> str:
    """Return SQL written for the schema `inturn` as SQL for another schema and its roles.

    Raises:
        SchemaNameRefused: see `check_schema_name`.
    """
    check_schema_name(schema)
    return sql if schema == DEFAULT_SCHEMA else advice.advised_in_sql(_MENTION.sub(schema, sql), schema)


def manifest() -> list[str]:
    """Return the paths of the SQL files, relative to sql/, in the order in which they run."""
    lines = (files("inturn.schema") / "sql" / "manifest").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def script(schema: str = DEFAULT_SCHEMA) -> str:
    """Return the SQL that builds today's schema into an empty one.

    Raises:
        SchemaNameRefused: see `check_schema_name`.
    """
    root = files("inturn.schema") / "sql"
    parts = (f"-- {path}\n{root.joinpath(path).read_text('utf-8')}" for path in manifest())
    return rename("\n".join(parts), schema)


def roles_script(schema: str = DEFAULT_SCHEMA) -> str:
    """Return the SQL that makes the schema's roles: for a DBA, where the login that installs may not.

    Raises:
        SchemaNameRefused: see `check_schema_name`.
    """
    root = files("inturn.schema")
    roles = (root / "sql" / "roles.sql").read_text("utf-8")
    return rename(roles, schema)


def grants_script() -> str:
    """Return the SQL that grants what there is to grant, for the schema `inturn`."""
    return (files("inturn.schema") / "sql" / "grants.sql").read_text("utf-8")


def receiver_source() -> str:
    """Return the SQL of the receiver's guard, for the schema `inturn`."""
    return (files("inturn.schema") / "receiver" / "0001_accept.sql").read_text("utf-8")


def revision_sql(revision: str, schema: str = DEFAULT_SCHEMA) -> str:
    """Return the SQL that has a schema which is there say that it is at a revision.

    Raises:
        SchemaNameRefused: see `check_schema_name`.
    """
    root = files("inturn.schema")
    living = next(statements((root / "sql" / "look" / "_revision.sql").read_text("utf-8")))
    replacing = living.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)
    return rename(re.sub(r"(?<=SELECT ')\d+(?=')", revision, replacing), schema)


def created_names(sql: str) -> list[str]:
    """Return the names of the tables, views, types and routines that SQL creates in the schema `inturn`.

    Args:
        sql: as the files have it: for the schema `inturn`, every CREATE at the beginning of a line.
    """
    return sorted(set(_CREATED.findall(sql)))


def created_objects(sql: str) -> Counter[str]:
    """Return what SQL creates in the schema `inturn`: kind and name, in PostgreSQL's words, and how often.

    Args:
        sql: as for `created_names`.
    """
    found = ((kind.lower(), name) for kind, name in _OBJECT.findall(sql))
    return Counter(f"{'type' if kind == 'domain' else kind} {name}" for kind, name in found)


def changed_tables(sql: str) -> list[str]:
    """Return the tables of the schema `inturn` that SQL changes, but does not create, in the order to lock.

    What callers read and lock first comes first.

    Args:
        sql: as for `created_names`: every ALTER, DROP and CREATE at the beginning of a line.
    """
    created = {name for kind, name in _OBJECT.findall(sql) if kind == "TABLE"}
    changed = {name for pair in _CHANGED.findall(sql) for name in pair if name} - created
    return sorted(changed, key=lambda name: (name != "topic", name != "key_sequence", name))


def statements(sql: str) -> Iterator[str]:
    """Yield the statements of SQL of ours one by one, each with the comments before it.

    Not for any SQL there is: ours has no nested comments, and no backslash before a quote.
    """
    begin = 0
    for piece in _PIECE.finditer(sql):
        if piece["end"]:
            yield sql[begin : piece.end()].strip()
            begin = piece.end()
