"""`inturn upgrade` and `inturn downgrade`: the schema comes, changes and goes."""

from __future__ import annotations

import click
import psycopg
from alembic.util import CommandError

from inturn.cli.advice import program
from inturn.cli.database import Database, pass_database
from inturn.cli.errors import Failure
from inturn.cli.terminal.output import Ours, echo
from inturn.schema import privileges
from inturn.schema.errors import SchemaMismatch
from inturn.schema.install import downgrade as downgrade_schema
from inturn.schema.install import upgrade as upgrade_schema
from inturn.schema.install import upgrade_script
from inturn.schema.privileges import Change
from inturn.schema.receiver import HEAD as RECEIVER_HEAD
from inturn.schema.receiver import (
    downgrade_receiver,
    receiver_roles_script,
    receiver_script,
    upgrade_receiver,
)
from inturn.schema.source import roles_script
from inturn.schema.version import HEAD, installed_receiver, installed_version

#: What a change begins with, and what is said of it.
_CHANGES: dict[str | tuple[str, ...], str] = {
    "CREATE ROLE": "roles made",
    "ALTER ROLE": "powers taken away from roles",
    "REVOKE": "privileges taken away that nobody should have so",
    "GRANT": "privileges granted that roles lacked",
    ("ALTER TABLE", "ALTER VIEW", "DROP POLICY", "CREATE POLICY"): "row level security set right",
    "SELECT": "targets and merge functions called again, whose owners were recorded on another server",
}


@click.command(
    epilog="""\b
Example:
  inturn upgrade
  inturn upgrade --sql > inturn.sql
  inturn upgrade --receiver-only"""
)
@click.option("--sql", "as_script", is_flag=True, help="Print the SQL instead of running it.")
@click.option("--roles", is_flag=True, help="Print the SQL that creates the roles, for a DBA to run.")
@click.option(
    "--receiver-only", is_flag=True, help="Only the function accept, for a service that receives commands."
)
@pass_database
def upgrade(database: Database, *, as_script: bool, roles: bool, receiver_only: bool) -> None:
    """Install the schema, or upgrade it.

    It is safe to run again, and by several processes at once. It also brings roles
    and privileges to what they must be, and says what it changed. --sql changes
    nothing and needs no database; if you name one, the script starts at the
    revision that is installed there. Where your login may not create roles, a DBA
    runs what --roles prints, once per server.
    """
    if roles and as_script:
        raise click.UsageError("Give --sql or --roles, not both.")
    if roles:
        script = receiver_roles_script if receiver_only else roles_script
        echo(Ours(script(schema=database.schema)), nl=False)
        return
    if as_script:
        echo(Ours(_script(database, receiver_only=receiver_only)), nl=False)
        return
    with database.connect(check=False) as connection:
        where = f"database {connection.info.dbname}"
    run = upgrade_receiver if receiver_only else upgrade_schema
    changes: list[Change] = []
    try:
        before, now = run(database.conninfo, schema=database.schema, report=changes.append)
    except psycopg.errors.InsufficientPrivilege as error:
        if "CREATE ROLE" not in (error.diag.context or ""):  # its message is in the server's language
            raise
        roles_of = f"{program()} upgrade --roles{' --receiver-only' * receiver_only}"
        raise Failure(
            "the database refused: this login may not create roles, and some are missing",
            hint=f"Have them made by a login that may: {roles_of} | psql; then run this again",
        ) from None
    what = _what(database, receiver_only=receiver_only)
    if before == now:
        echo(f"{what} of {where} is at revision {now} already")
    elif before is None:
        echo(f"{what} installed in {where}, revision {now}")
    else:
        echo(f"{what} of {where} upgraded from revision {before} to {now}")
    _print_changes(changes)


def _print_changes(changes: list[Change]) -> None:
    """Say which privileges were not as they must be; nothing where none was.

    Raises:
        Failure: some are not yet.
    """
    for verb, says in _CHANGES.items():
        done = [change.sql for change in changes if change.done and change.sql.startswith(verb)]
        if done:
            echo(f"{says}: {len(done)}. The first: {done[0]}")
    left = [change.sql for change in changes if not change.done]
    if left:
        raise Failure(
            f"{len(left)} privileges are not as they must be, and this login may not change them",
            hint=f"Have the owner of the schema, or a superuser, run this again. The first: {left[0]}",
        )


def _what(database: Database, *, receiver_only: bool) -> str:
    return f"receiver in schema {database.schema}" if receiver_only else f"schema {database.schema}"


def _script(database: Database, *, receiver_only: bool) -> str:
    head = RECEIVER_HEAD if receiver_only else HEAD
    what = _what(database, receiver_only=receiver_only)
    before, wrong = None, list[str]()
    if database.named:
        with database.connect(check=False) as connection:
            version = installed_receiver if receiver_only else installed_version
            before = version(connection, database.schema)
            if before == head:
                wrong = privileges.wrong(connection, database.schema)
    if before == head:
        return f"-- {what} is at revision {head} already: " + (
            "nothing to do\n"
            if not wrong
            else "except for its privileges\n" + "".join(f"{one};\n" for one in wrong)
        )
    if before is not None and before > head:
        raise SchemaMismatch(
            f"{what} is at revision {before}, newer than this inturn's {head}",
            hint="Upgrade this machine's package with: pip install --upgrade inturn",
        )
    script = receiver_script if receiver_only else upgrade_script
    return script(schema=database.schema, from_revision=before)


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
    help="The revision to go back to; base removes the schema with all its data.",
)
@click.option(
    "--force", is_flag=True, help="Even if commands are pending, or a receiver has accepted commands."
)
@click.option("--receiver-only", is_flag=True, help="Only what upgrade --receiver-only installed.")
@pass_database
def downgrade(database: Database, *, revision: str, force: bool, receiver_only: bool) -> None:
    """Remove the schema, or go back to an earlier revision.

    Refuses while commands are pending, unless forced. The roles stay, because they
    belong to the whole cluster.
    """
    if receiver_only and revision != "base":
        raise click.UsageError("--receiver-only goes to base: leave out --to")
    with database.connect(check=False) as connection:
        where = f"database {connection.info.dbname}"
    if receiver_only:
        downgrade_receiver(database.conninfo, schema=database.schema, force=force)
        echo(f"receiver in schema {database.schema} removed from {where}")
        return
    try:
        downgrade_schema(database.conninfo, schema=database.schema, revision=revision, force=force)
    except CommandError as error:
        raise Failure(f"cannot go to revision {revision}: {error}") from error
    if revision == "base":
        echo(f"schema {database.schema} removed from {where}")
    else:
        echo(f"schema {database.schema} of {where} is at revision {revision}")
