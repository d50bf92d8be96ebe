"""The `inturn` command: its options, its commands, and how an error reaches the user."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

import click

from inturn.cli.act.actions import ACTIONS
from inturn.cli.exit_codes import ExitCode

#: heading → command → where it is, or what makes it from its name; and its line in the help. No command is
#: imported before it is called.
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Set up": {
        "upgrade": ("inturn.cli.set_up.install:upgrade", "Install the schema, or upgrade it."),
        "downgrade": ("inturn.cli.set_up.install:downgrade", "Remove the schema, or go back a revision."),
        "topic": ("inturn.cli.set_up.topic:topic", "Create topics, list and change them."),
        "embedded": ("inturn.cli.set_up.embedded_command:embedded", "The PostgreSQL that inturn brings."),
        "completion": (
            "inturn.cli.set_up.completion:completion",
            "Complete commands and keys in your shell.",
        ),
    },
    "Append": {
        "append": ("inturn.cli.append:append", "Append a command to a key."),
        "wait": ("inturn.cli.wait:wait", "Wait until a key has been applied."),
    },
    "Apply": {
        "apply": ("inturn.cli.run.apply:apply", "Apply commands, each key in turn."),
        "demo": ("inturn.cli.demo.command:demo", "See the problem happen, and not happen."),
    },
    "Look": {
        "status": ("inturn.cli.look.status:status", "Summarize the topics and the appliers."),
        "keys": ("inturn.cli.look.keys:keys", "List keys and where they stand."),
        "why": ("inturn.cli.look.why:why", "Say why a key does not move, and what to do."),
        "show": ("inturn.cli.look.show:show", "Show a key's commands, turns and operators' actions."),
        "doctor": ("inturn.cli.doctor.command:doctor", "Examine the server, the schema and the appliers."),
        "metrics": ("inturn.cli.look.metrics:metrics", "Print metrics for Prometheus."),
        "verify": ("inturn.cli.look.verify:verify", "Check that everything stored keeps the promises."),
    },
    "Keep small": {"prune": ("inturn.cli.run.prune:prune", "Remove what need not be kept any more.")},
    "Put right": {action.name: (action.where, action.line) for action in ACTIONS},
}

_EPILOG = """\b
Without --dsn, INTURN_DSN names the database; otherwise libpq's PG* variables
do, if PGHOST or PGSERVICE is set; otherwise it is the embedded PostgreSQL.
Keep passwords in ~/.pgpass or INTURN_DSN: other users can see --dsn.

\b
Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 some keys are held,
4 database unreachable or lost, 5 schema missing or of another revision,
6 current commands cut off, 7 keys --check found some, 8 verify found a
violation, 9 status --check or doctor found something wrong, 10 too many
handlers hang, 11 wait timed out, 130 interrupted.

\b
Example:
  inturn upgrade && inturn topic create orders
  inturn append orders order-42 insert '{"amount": 3}'
  inturn keys"""


class _Commands(click.Group):
    """The commands, under their headings, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return [name for section in COMMANDS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        for section in COMMANDS.values():
            if cmd_name in section:
                module, _, attribute = section[cmd_name][0].partition(":")
                found = getattr(import_module(module), attribute)
                command: click.Command = found if isinstance(found, click.Command) else found(cmd_name)
                for leaf in _leaves(command):
                    _accept_database_options(leaf)
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = get_close_matches(args[0], self.list_commands(ctx), n=1)
            if not near:
                raise
            raise click.UsageError(f"No such command {args[0]!r}. Did you mean {near[0]!r}?", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for heading, section in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, line) for name, (_, line) in section.items()])


def _leaves(command: click.Command) -> Iterator[click.Command]:
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from _leaves(child)
    else:
        yield command


def _accept_database_options(command: click.Command) -> None:
    """Let --dsn and --schema also stand after the command, where hands put them."""
    taken = {option for parameter in command.params for option in parameter.opts}
    for name in ("dsn", "schema"):
        if f"--{name}" not in taken:
            command.params.append(click.Option([f"--{name}"], hidden=True, expose_value=False, callback=_set))


def _set(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    if ctx.obj is None:  # a shell completes the line
        ctx.find_root().params[str(param.name)] = value
        return
    from inturn.cli.advice import called

    for named in (ctx.obj, called):
        setattr(named, str(param.name), value)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--dsn", metavar="CONNECTION", help="The database, as libpq's URI or key=value string.")
@click.option(
    "--schema",
    envvar="INTURN_SCHEMA",
    show_envvar=True,
    show_default=True,
    default="inturn",
    help="The schema that holds inturn.",
)
@click.version_option(package_name="inturn", prog_name="inturn")
@click.pass_context
def cli(ctx: click.Context, dsn: str | None, schema: str) -> None:
    """Commands of one key take effect strictly in turn, in your own PostgreSQL.

    --dsn and --schema may stand before or after the command.
    """
    if ctx.invoked_subcommand is None:
        from inturn.cli.terminal.output import Ours, echo

        echo(Ours(ctx.get_help()))
        return
    from inturn.cli.advice import called
    from inturn.cli.database import Database

    ctx.obj = Database(dsn=dsn, schema=schema)
    called.dsn, called.schema = dsn, schema


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; every error is one line on stderr and an exit code."""
    _replace_closed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # Otherwise Python prints what the driver warns of, where nobody has set up a log: that a rollback failed,
    # for instance, when a wait is interrupted.
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    try:
        if "_INTURN_COMPLETE" in os.environ:  # a shell asks: see completion
            import_module("inturn.cli.set_up.completion")
        result: Any = cli.main(args, prog_name="inturn", standalone_mode=False)
        sys.stdout.flush()
    except Exception as error:
        if os.environ.get("INTURN_TRACEBACK"):
            raise
        sys.exit(_report(error))
    sys.exit(result if isinstance(result, int) else ExitCode.OK)


def _replace_closed() -> None:
    """Open what was closed (`>&-`), as if it were /dev/null: nobody wants to read it.

    Otherwise Python has no such stream, and a connection gets its descriptor: what a library or a child
    process prints would go to the database.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest one that is free
            os.set_inheritable(descriptor, True)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _report(error: Exception) -> ExitCode:
    if isinstance(error, ImportError):
        line, code = _missing(error), ExitCode.ERROR
    else:
        from inturn.cli.errors import explain

        line, code = explain(error)
    from inturn.cli.terminal.output import echo

    echo(f"inturn: {line}", err=True)
    if isinstance(error, OSError):  # a full stdout would complain once more at exit
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _missing(error: ImportError) -> str:
    if "pq wrapper" in str(error):
        return "psycopg finds no libpq. Install it, or: pip install 'inturn[binary]'"
    return f"a part of inturn cannot be loaded: {' '.join(str(error).split())}. Reinstall inturn"


if __name__ == "__main__":
    main()
