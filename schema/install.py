"""Installing, upgrading and removing the schema, in one transaction: the revisions are Alembic's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
from sqlalchemy import Connection, NullPool, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from inturn.schema import locks, owners, privileges, removal, row_security, strangers
from inturn.schema.connection import connect
from inturn.schema.errors import SchemaInUse, SchemaMismatch, SchemaNameRefused, TransactionNeeded
from inturn.schema.privileges import Report
from inturn.schema.revisions import walk
from inturn.schema.source import DEFAULT_SCHEMA, check_schema_name
from inturn.schema.version import HEAD, check_not_newer, installed_receiver


def upgrade(
    dsn: str, *, schema: str = DEFAULT_SCHEMA, report: Report | None = None
) -> tuple[str | None, str]:
    """Install the schema, or upgrade it to the revision that this package serves.

    Any number may run at once: one does the work, the others wait for it and find it done.
    It also sets roles and privileges to what they must be, even if the schema is up to date: a restore may
    have left them out. If the schema is newer and serves this package too, it does nothing.

    Callers and appliers go on meanwhile. It asks for locks on tables briefly, again and again for a minute
    at most, so nobody queues behind an upgrade that cannot get them.

    Args:
        dsn: libpq connection string; what it leaves out comes from the PG* variables.
        schema: the schema's name; the roles are named after it.
        report: is called with a Change for each privilege, role or recorded owner of an installed schema that
            was not as it must be. None: what could not be changed is logged as a warning.

    Returns:
        The revision before (None: not installed) and the one now.

    Raises:
        SchemaNameRefused: the name cannot be used.
        SchemaInUse: the schema is there and holds what is not inturn's, or others may create in it; or a
            table that changes was in use for a minute.
        SchemaMismatch: the schema in the database is newer than this package, and does not serve it.
        NoPrivilege: the login may not create the schema, or anything in it.
        psycopg.Error: the database cannot be reached, or refused; nothing was changed.
    """
    with installing(dsn, schema) as connection:
        return _upgrade(connection, schema, report)


def upgrade_on(
    connection: Connection, *, schema: str = DEFAULT_SCHEMA, report: Report | None = None
) -> tuple[str | None, str]:
    """Do what `upgrade` does in the transaction of a connection of yours, as in a migration of your service.

    Nothing is committed here. What is done is undone with your transaction.

    Args:
        connection: SQLAlchemy's, to PostgreSQL. In a migration of Alembic: `op.get_bind()`.
        schema, report: as for `upgrade`.

    Returns:
        The revision before (None: not installed) and the one now.

    Raises:
        SchemaNameRefused: the name cannot be used.
        SchemaInUse: the schema is there and holds what is not inturn's, or others may create in it; or a
            table that changes was in use for a minute.
        SchemaMismatch: the schema in the database is newer than this package, and does not serve it.
        NoPrivilege: the login may not create the schema, or anything in it.
        TransactionNeeded: the connection is in autocommit, where a failed upgrade would be left half done.
        sqlalchemy.exc.DBAPIError: the database refused.
    """
    check_schema_name(schema)
    # No driver says it in the way of another: in autocommit each statement has a transaction of its own.
    began = text("SELECT now()")
    if connection.scalar(began) != connection.scalar(began):
        raise TransactionNeeded(
            f"schema {schema} is not installed on a connection in autocommit",
            hint="Give a connection that is in a transaction",
        )
    with _pinned(connection):
        _lock_out_others(connection, schema)
        return _upgrade(connection, schema, report)


def upgrade_script(
    *, schema: str = DEFAULT_SCHEMA, from_revision: str | None = None, transaction: bool = True
) -> str:
    """Return the SQL that `upgrade` would run, for a DBA to read and run.

    Args:
        schema: the schema's name.
        from_revision: the revision that is installed now; None: none is.
        transaction: whether the script begins and commits a transaction; False for a part of another script.

    Raises:
        SchemaNameRefused: the name cannot be used.
        SchemaMismatch: the installed revision is newer than this package.
        alembic.util.CommandError: there is no such revision.
    """
    check_schema_name(schema)
    if from_revision is not None:
        check_not_newer(from_revision, schema)
    parts: list[str] = []
    if from_revision is None:
        parts += [f"CREATE SCHEMA IF NOT EXISTS {schema};", strangers.guard_script(schema)]
    walk.up(parts.append, schema=schema, installed=from_revision, head=HEAD)
    if transaction:
        # Nobody is to queue for long behind a script that waits for a lock: it fails, and is run again.
        patience = [] if from_revision is None else ["SET LOCAL lock_timeout = '500ms';"]
        parts = ["BEGIN;", *patience, *parts, "COMMIT;"]
    return "\n\n".join(parts) + "\n"


def _upgrade(connection: Connection, schema: str, report: Report | None) -> tuple[str | None, str]:
    before = _revision(connection, schema)
    if before is not None and before > HEAD:
        since = _revision(connection, schema, "compatible_since")
        if since is not None and since <= HEAD:
            return before, before
        check_not_newer(before, schema)
    ask, run = _asker(connection), _runner(connection)
    lock = partial(locks.try_until_free, connection, schema)
    if before is None:
        # Where it exists already, a DBA may have made it for a login that may not.
        strangers.refuse_no_privilege(ask, schema)
        if not inspect(connection).has_schema(schema):
            connection.execute(text(f"CREATE SCHEMA {schema}"))
        else:
            strangers.refuse_taken(ask, schema, strangers.receiver_objects())
        # A part of the transaction: what it grants afterwards is told from what was given here by default.
        with connection.begin_nested():
            walk.up(run, schema=schema, installed=None, head=HEAD)
    elif before != HEAD:
        privileges.close_opened(ask, run, schema, report)
        lock(partial(walk.up, run, schema=schema, installed=before, head=HEAD))
    told = report if before else None
    privileges.set_right(ask, run, schema, told)
    row_security.set_right(ask, run, lock, schema, partial(privileges.tell, told))
    owners.record_anew(ask, schema, told)
    return before, HEAD


def _revision(connection: Connection, schema: str, relation: str = "schema_version") -> str | None:
    """Return the revision that is installed, or what a view says of it; None where that is not there."""
    # Other tools have a table of this name too, of other columns.
    # Not by to_regclass: a login that may not use the schema is told what to do, see `strangers`.
    ours = text(
        "SELECT FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = :schema AND c.relname = :relation AND a.attname = 'version_num'"
    )
    if not connection.execute(ours, {"schema": schema, "relation": relation}).rowcount:
        return None
    found: str | None = connection.scalar(text(f"SELECT version_num FROM {schema}.{relation}"))  # noqa: S608 - a checked name
    return found


def _runner(connection: Connection) -> Callable[[str], None]:
    # Without parameters a % is a %.
    plain = connection.execution_options(no_parameters=True)

    def run(statement: str) -> None:
        plain.exec_driver_sql(statement)

    return run


def _asker(connection: Connection) -> strangers.Ask:
    plain = connection.execution_options(no_parameters=True)
    return lambda query: plain.exec_driver_sql(query).all()


#: What the scripts name without a schema is PostgreSQL's own, whatever a service has in its path.
_PINS = {
    "search_path": "pg_catalog, pg_temp",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
}


@contextmanager
def _pinned(connection: Connection) -> Iterator[None]:
    """Have the settings that the scripts rely on for a block. What fails takes the transaction along."""
    put = text("SELECT set_config(:name, :value, true)")
    ask = text("SELECT current_setting(:name)")
    were = {name: connection.scalar(ask, {"name": name}) for name in _PINS}
    for name, value in _PINS.items():
        connection.execute(put, {"name": name, "value": value})
    yield
    for name, value in were.items():
        connection.execute(put, {"name": name, "value": value})


def downgrade(dsn: str, *, schema: str = DEFAULT_SCHEMA, revision: str = "base", force: bool = False) -> None:
    """Take the schema back to an earlier revision; `base` removes it. The roles stay.

    What only a later revision stores is lost. Commands are lost only if the schema is removed.

    Args:
        dsn: libpq connection string; what it leaves out comes from the PG* variables.
        schema: the schema's name.
        revision: the revision to go back to.
        force: whether to remove the schema even if commands are pending; they are lost.

    Raises:
        SchemaNameRefused: no schema of inturn can have this name.
        CommandsPending: some key has commands that are not applied, and force is not set.
        SchemaMismatch: the schema is not installed, or newer than this package.
        SchemaInUse: something outside depends on it: a SQL target that takes the type `command`; or
            something in it is not inturn's; or one of its tables was in use for a minute.
        psycopg.Error: the database refused; nothing was changed.
        alembic.util.CommandError: there is no such revision, or it is later than the installed one.
    """
    with installing(dsn, schema) as connection:
        version = _revision(connection, schema)
        if version is None:
            raise SchemaMismatch(
                f"schema {schema} is not installed in this database", hint="There is nothing to do"
            )
        check_not_newer(version, schema)
        removal.lock_tables(connection, schema)
        if revision == "base" and not force:
            removal.check_nothing_pending(connection, schema)
        _go_back(connection, schema, version, revision)
        # Beside the guard the schema stays, with what else is in it.
        if revision == "base" and installed_receiver(driver_of(connection), schema) is None:
            strangers.refuse_strangers(_asker(connection), schema, Counter(), doing="is not removed")
            connection.execute(text(f"DROP SCHEMA {schema}"))


def _go_back(connection: Connection, schema: str, installed: str, revision: str) -> None:
    """Run the downgrades down to a revision.

    Raises:
        SchemaInUse: something outside depends on what they drop, or has the name of it.
    """
    try:
        walk.down(_runner(connection), schema=schema, installed=installed, revision=revision)
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.errors.ObjectInUse):
            raise SchemaInUse(
                error.orig.diag.message_primary or str(error.orig),
                hint="Drop that, or move it to another schema",
            ) from None
        if not isinstance(error.orig, psycopg.errors.DependentObjectsStillExist):
            raise
        detail = error.orig.diag.message_detail or ""
        raise SchemaInUse(
            f"schema {schema} is still in use: {detail.splitlines()[0]}",
            hint="Drop or change what depends on it first",
        ) from None


@contextmanager
def installing(dsn: str, schema: str) -> Iterator[Connection]:
    """Yield a connection in a transaction that runs beside no other install of this schema."""
    check_schema_name(schema)
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: connect(dsn, autocommit=False), poolclass=NullPool
    )
    try:
        with engine.begin() as connection, _pinned(connection):
            _lock_out_others(connection, schema)
            yield connection
    except DBAPIError as error:
        # The driver's own words, without the script that SQLAlchemy appends to them.
        raise error.orig or error from None


def _lock_out_others(connection: Connection, schema: str) -> None:
    """Let no other install of this schema run beside the transaction.

    Raises:
        SchemaNameRefused: the name is a word that SQL has for itself.
    """
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"inturn upgrade {schema}"}
    )
    if connection.scalar(text("SELECT quote_ident(:name)"), {"name": schema}) != schema:
        raise SchemaNameRefused(
            f"schema name {schema!r} is a reserved word of SQL", hint="Choose another name"
        )


def driver_of(connection: Connection) -> psycopg.Connection[Any]:
    """Return the driver's connection behind one of `installing`."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 - for mypy: the engine above made it
    return driver
