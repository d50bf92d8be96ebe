"""Which schema in the database this version of inturn can serve."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from inturn.schema.advice import advised
from inturn.schema.errors import SchemaMismatch, SchemaNameRefused
from inturn.schema.source import DEFAULT_SCHEMA, check_schema_name

#: The revision that this package installs. It also serves later ones that say they are compatible with it.
HEAD = "0001"


def installed_version(connection: psycopg.Connection[Any], schema: str = DEFAULT_SCHEMA) -> str | None:
    """Return the revision of the schema in the database, None when it is not installed.

    Raises:
        psycopg.Error: the database refused the question.
    """
    return _version_in(connection, schema, "schema_version")


def installed_receiver(connection: psycopg.Connection[Any], schema: str = DEFAULT_SCHEMA) -> str | None:
    """Return the revision of the receiver's guard in the database, None when it is not installed.

    Raises:
        psycopg.Error: the database refused the question.
    """
    return _version_in(connection, schema, "receiver_version")


def _version_in(connection: psycopg.Connection[Any], schema: str, table: str) -> str | None:
    try:
        check_schema_name(schema)
    except SchemaNameRefused:
        return None  # nobody can have installed it there
    # Other tools have tables of these names too, of other columns.
    # to_regclass would refuse whoever may not use the schema, in words that name no remedy.
    ours = """
        SELECT FROM pg_catalog.pg_attribute a
        JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) a.attrelid
        JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        WHERE n.nspname OPERATOR(pg_catalog.=) %s::pg_catalog.text
            AND c.relname OPERATOR(pg_catalog.=) %s::pg_catalog.text
            AND a.attname OPERATOR(pg_catalog.=) 'version_num'"""
    if not connection.execute(ours, (schema, table)).rowcount:
        return None
    version = connection.execute(
        sql.SQL("SELECT version_num FROM {}").format(sql.Identifier(schema, table))
    ).fetchone()
    return None if version is None else str(version[0])


def check_version(connection: psycopg.Connection[Any], schema: str = DEFAULT_SCHEMA) -> None:
    """Make sure that the schema in the database is one that this package serves.

    Raises:
        SchemaMismatch: it is not installed, older, or newer and not compatible with this package.
        psycopg.Error: the database refused the question.
    """
    version = installed_version(connection, schema)
    if version == HEAD or (version is not None and is_compatible(version, connection, schema)):
        return
    if version is None:
        raise SchemaMismatch(
            f"schema {schema} is not installed in database {connection.info.dbname}",
            hint=advised("Install it with: inturn upgrade", schema),
        )
    if version < HEAD:
        raise SchemaMismatch(
            f"schema {schema} is at revision {version}, older than the {HEAD} that this inturn serves",
            hint=advised("Upgrade it with: inturn upgrade", schema),
        )
    check_not_newer(version, schema)


#: Classes of SQLSTATE by which a database says that it has a part not, or otherwise than a statement expects:
#: undefined or ambiguous, no schema, a changed plan, dropped while it was looked up.
_OF_PARTS = ("42", "3F", "0A", "XX")


def may_be_upgraded(error: BaseException) -> bool:
    """Return whether an upgrade, or a removal of the schema, may be why a statement was refused."""
    return isinstance(error, psycopg.DatabaseError) and (error.sqlstate or "").startswith(_OF_PARTS)


def check_after(
    error: BaseException, connection: psycopg.Connection[Any], schema: str = DEFAULT_SCHEMA
) -> None:
    """Make sure that an error is not by an upgrade that this package was at work through.

    What was refused is then nobody's fault, and whoever began it has to end.

    Args:
        error: what a statement was refused with, or a block with statements of inturn.
        connection: any to the database; it is asked only if it is not in a failed transaction.

    Raises:
        SchemaMismatch: the schema has gone, or is not one any more that this package serves.
    """
    if isinstance(error, SchemaMismatch):
        raise error
    usable = connection.info.transaction_status in {TransactionStatus.IDLE, TransactionStatus.INTRANS}
    if usable and may_be_upgraded(error):
        with suppress(psycopg.Error):  # then the error speaks for itself
            check_version(connection, schema)


def is_compatible(version: str, connection: psycopg.Connection[Any], schema: str = DEFAULT_SCHEMA) -> bool:
    """Return whether the installed revision is newer than this package's, and serves this package's too.

    Raises:
        psycopg.Error: the database refused the question.
    """
    if version <= HEAD:
        return False
    since = _version_in(connection, schema, "compatible_since")
    return since is not None and since <= HEAD


def check_not_newer(version: str, schema: str = DEFAULT_SCHEMA) -> None:
    """Make sure that this package knows a revision.

    Raises:
        SchemaMismatch: it is newer than this package.
    """
    if version > HEAD:
        raise SchemaMismatch(
            f"schema {schema} is at revision {version}, newer than the {HEAD} that this inturn serves",
            hint="Upgrade this machine's package with: pip install --upgrade inturn",
        )
