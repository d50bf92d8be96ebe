"""The guard of a receiver's own database: with a version of its own, beside the schema or alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import psycopg

from inturn.schema import locks, removal, strangers
from inturn.schema.errors import SchemaInUse, SchemaMismatch
from inturn.schema.install import driver_of, installing
from inturn.schema.privileges import Report, set_right
from inturn.schema.source import DEFAULT_SCHEMA, check_schema_name, rename, statements
from inturn.schema.version import installed_receiver, installed_version

#: The scripts, oldest first, each frozen once released; a later one changes what the ones before made.
SCRIPTS = ("0001_accept",)
HEAD = SCRIPTS[-1][:4]


def upgrade_receiver(
    dsn: str, *, schema: str = DEFAULT_SCHEMA, report: Report | None = None
) -> tuple[str | None, str]:
    """Install the guard, or upgrade it; the schema beside it, if there is one, is left as it is.

    Any number may run at once: one does the work, the others wait for it and find it done.
    Roles and privileges are brought to what they must be: see `inturn.schema.install.upgrade`.

    Args:
        dsn: libpq connection string; what it leaves out comes from the PG* variables.
        schema: the schema's name; the role is named after it.
        report: is told of each privilege or role that was not as it must be where the guard was there.

    Returns:
        The revision before (None: not installed) and the one now.

    Raises:
        SchemaNameRefused: the name cannot be used.
        SchemaInUse: the schema is there and holds what is not inturn's, or others may create in it.
        SchemaMismatch: what is in the database is newer than this package.
        NoPrivilege: the login may not create the schema, or anything in it.
        psycopg.Error: the database refused; nothing was changed.
    """
    with installing(dsn, schema) as installs:
        connection = driver_of(installs)
        before = _known(connection, schema)
        if before is None:
            strangers.refuse_no_privilege(_asker(connection), schema)
        # Where it exists already, a DBA may have made it for a login that may not.
        if connection.execute("SELECT to_regnamespace(%s)", [schema]).fetchone() == (None,):
            connection.execute(_encoded(f"CREATE SCHEMA {schema}"))
        elif before is None and installed_version(connection, schema) is None:
            strangers.refuse_taken(_asker(connection), schema, Counter())
        for script in _later(before):
            connection.execute(_encoded(_text(script, schema)))
        # The schema beside it is left to its own upgrade.
        if before is not None and installed_version(connection, schema) is None:
            set_right(_asker(connection), _runner(connection), schema, report)
    return before, HEAD


def receiver_script(*, schema: str = DEFAULT_SCHEMA, from_revision: str | None = None) -> str:
    """Return the SQL that `upgrade_receiver` would run, for a DBA to read and run.

    Args:
        schema: the schema's name.
        from_revision: what is installed now; None for a database without it.

    Raises:
        SchemaNameRefused: the name cannot be used.
    """
    check_schema_name(schema)
    scripts = "\n".join(_text(script, schema) for script in _later(from_revision))
    if from_revision is None:
        scripts = strangers.receiver_guard_script(schema) + "\n\n" + scripts
    return f"BEGIN;\n\nCREATE SCHEMA IF NOT EXISTS {schema};\n\n{scripts}\nCOMMIT;\n"


def receiver_roles_script(*, schema: str = DEFAULT_SCHEMA) -> str:
    """Return the SQL that makes the receiver's role, for a DBA.

    Raises:
        SchemaNameRefused: the name cannot be used.
    """
    check_schema_name(schema)
    return next(one for one in statements(_text(SCRIPTS[0], schema)) if "CREATE ROLE" in one) + "\n"


def downgrade_receiver(dsn: str, *, schema: str = DEFAULT_SCHEMA, force: bool = False) -> None:
    """Remove the guard, and the schema if nothing else is in it. The role stays.

    Args:
        dsn: libpq connection string.
        schema: the schema's name.
        force: also when commands were accepted. A repeat of one of them would take effect again.

    Raises:
        SchemaNameRefused: no schema of inturn can have this name.
        SchemaMismatch: it is not installed, or newer than this package.
        SchemaInUse: commands were accepted, and force is not set; or the schema would go, and something
            in it is not inturn's; or somebody had its table in use for a minute.
        psycopg.Error: the database refused; nothing was changed.
    """
    with installing(dsn, schema) as removes:
        connection = driver_of(removes)
        if _known(connection, schema) is None:
            raise SchemaMismatch(
                f"no receiver is installed in schema {schema} of this database", hint="There is nothing to do"
            )
        # Receivers would queue behind one that waits.
        lock = f"LOCK TABLE {schema}.accepted IN ACCESS EXCLUSIVE MODE"
        what = f"the receiver in schema {schema} was not removed"
        locks.try_until_free(removes, schema, lambda: removes.exec_driver_sql(lock), what)
        connection.execute(removal.BRIEFLY)
        if not force and connection.execute(_encoded(f"SELECT FROM {schema}.accepted LIMIT 1")).rowcount:
            raise SchemaInUse(
                f"the receiver in schema {schema} knows which commands took effect here: without it,"
                " one that is sent again takes effect again",
                hint="Remove it all the same with --force",
            )
        alone = installed_version(connection, schema) is None
        if alone:
            ours = strangers.receiver_objects()
            strangers.refuse_strangers(_asker(connection), schema, ours, doing="is not removed")
        for script in reversed(SCRIPTS):
            connection.execute(_encoded(_text(f"{script}_down", schema)))
        if alone:
            connection.execute(_encoded(f"DROP SCHEMA {schema}"))


def _known(connection: psycopg.Connection[Any], schema: str) -> str | None:
    """Return the installed revision.

    Raises:
        SchemaMismatch: it is newer than this package.
    """
    version = installed_receiver(connection, schema)
    if version is not None and version > HEAD:
        raise SchemaMismatch(
            f"the receiver in schema {schema} is at revision {version}, newer than the {HEAD} of this inturn",
            hint="Upgrade this machine's package with: pip install --upgrade inturn",
        )
    return version


def _later(revision: str | None) -> list[str]:
    return [script for script in SCRIPTS if revision is None or script[:4] > revision]


def _text(script: str, schema: str) -> str:
    return rename((files(__name__) / f"{script}.sql").read_text("utf-8"), schema)


def _asker(connection: psycopg.Connection[Any]) -> strangers.Ask:
    return lambda query: connection.execute(_encoded(query)).fetchall()


def _runner(connection: psycopg.Connection[Any]) -> Callable[[str], None]:
    def run(statement: str) -> None:
        connection.execute(_encoded(statement))

    return run


def _encoded(sql: str) -> bytes:
    """Return SQL in the form in which psycopg takes text that is not a literal of the program."""
    return sql.encode()
