"""`--watch`: what a command prints, printed again and again in the same place."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime

import click

from inturn.cli.exit_codes import ExitCode
from inturn.cli.terminal.output import visible
from inturn.cli.terminal.seconds import Seconds

watch_option = click.option(
    "--watch",
    type=Seconds(min=0.1, max=86400),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Repeat every 2 seconds, or every SECONDS, until Ctrl-C.",
)


def watch_lines(seconds: float, look: Callable[[], tuple[datetime, Sequence[str]]]) -> ExitCode:
    """Look again and again until Ctrl-C; what was printed last stays.

    Args:
        seconds: how long to wait between two looks.
        look: returns the database's time and the lines to print.

    Raises:
        click.UsageError: the output is not a terminal, or one that cannot go back to a line.
    """
    if not sys.stdout.isatty():
        raise click.UsageError("--watch needs a terminal.")
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(force_terminal=True)
    if console.is_dumb_terminal:
        raise click.UsageError("--watch needs a terminal that can go back to a line: TERM is dumb.")
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
            while True:
                now, lines = look()
                head = f"{now.astimezone():%H:%M:%S}, every {seconds:g} s, until Ctrl-C"
                live.update(Text.from_ansi("\n".join([head, *map(visible, lines)])), refresh=True)
                time.sleep(seconds)
    except KeyboardInterrupt:
        return ExitCode.OK
