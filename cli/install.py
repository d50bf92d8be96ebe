"""`inturn upgrade` and `inturn downgrade`: the schema comes, changes and goes."""

from __future__ import annotations

import click
from alembic.util import CommandError

from inturn.cli.database import Database, pass_database
from inturn.cli.errors import Failure
from inturn.schema.errors import SchemaMismatch
from inturn.schema.install import downgrade as downgrade_schema
from inturn.schema.install import upgrade as upgrade_schema
from inturn.schema.install import upgrade_script
from inturn.schema.version import HEAD, installed_version


@click.command(
    epilog="""\b
Example:
  inturn upgrade
  inturn upgrade --sql > inturn.sql"""
)
@click.option("--sql", "as_script", is_flag=True, help="Print the SQL instead of running it.")
@pass_database
def upgrade(database: Database, *, as_script: bool) -> None:
    """Install the schema, or upgrade it.

    Safe to run again, and by many at once. With --sql nothing is changed, and no
    database is needed; where one is named, the script starts at its revision.
    """
    if as_script:
        click.echo(_script(database), nl=False)
        return
    with database.connect(check=False) as connection:
        where = f"database {connection.info.dbname}"
    before, now = upgrade_schema(database.conninfo, schema=database.schema)
    if before == now:
        click.echo(f"schema {database.schema} of {where} is at revision {now} already")
    elif before is None:
        click.echo(f"schema {database.schema} installed in {where}, revision {now}")
    else:
        click.echo(f"schema {database.schema} of {where} upgraded from revision {before} to {now}")


def _script(database: Database) -> str:
    before = None
    if database.named:
        with database.connect(check=False) as connection:
            before = installed_version(connection, database.schema)
    if before == HEAD:
        return f"-- schema {database.schema} is at revision {HEAD} already: nothing to do\n"
    if before is not None and before > HEAD:
        raise SchemaMismatch(
            f"schema {database.schema} is at revision {before}, newer than this inturn's {HEAD}",
            hint="Upgrade this machine's package with: pip install --upgrade inturn",
        )
    return upgrade_script(schema=database.schema, from_revision=before)


@click.command(
    epilog="""\b
Example:
  inturn downgrade"""
)
@click.option(
    "--to",
    "revision",
    default="base",
    show_default=True,
    metavar="REVISION",
    help="Where to; base removes the schema with all its data.",
)
@click.option("--force", is_flag=True, help="Also while commands are pending.")
@pass_database
def downgrade(database: Database, *, revision: str, force: bool) -> None:
    """Remove the schema, or go back to an earlier revision.

    Refuses while commands are pending, unless forced. The roles stay: they belong
    to the whole cluster.
    """
    with database.connect(check=False) as connection:
        where = f"database {connection.info.dbname}"
    try:
        downgrade_schema(database.conninfo, schema=database.schema, revision=revision, force=force)
    except CommandError as error:
        raise Failure(f"cannot go to revision {revision}: {error}") from error
    if revision == "base":
        click.echo(f"schema {database.schema} removed from {where}")
    else:
        click.echo(f"schema {database.schema} of {where} is at revision {revision}")
