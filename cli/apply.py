"""The command `inturn apply`: a fleet of workers, from cron or as a daemon."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from inturn.applier import Applier, Fleet, Outcome, Timeouts
from inturn.cli import logs
from inturn.cli.database import Database, pass_database
from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode

_LOOK_SECONDS = 0.05

_EPILOG = """\b
Exit codes: 0 nothing is ready any more, or stopped as asked; 3 drained, but
some keys are held; 4 database unreachable; 5 schema not fitting; 6 the grace
ran out and a command was cut off (it is rolled back, and tried again later).

\b
Example:
  inturn apply --app shop.handlers:applier --workers 4
  * * * * * inturn apply --drain --max-seconds 55 --quiet"""


@click.command(epilog=_EPILOG, short_help="Apply commands, each key in turn.")
@click.option("--app", metavar="MODULE:NAME", help="The Applier with the handlers of python targets.")
@click.option("--topic", "topics", multiple=True, help="Serve this topic only; may be repeated.")
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Threads, each with a connection of its own.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 60),
    default=50,
    show_default=True,
    help="The most keys that share a transaction; only while that stays short.",
)
@click.option(
    "--http-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds that a post to a service may take, all in all.",
)
@click.option(
    "--http-read-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds that it may take to the next byte of the answer.",
)
@click.option(
    "--http-connect-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds to connect to the service.",
)
@click.option("--drain", is_flag=True, help="Stop when nothing is ready; the default is to wait for more.")
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop after this many seconds, after the command in hand.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Seconds that the command in hand may take once stopping.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="The log, on stderr, and the summary, on stdout.",
)
@click.option(
    "--no-prepare",
    is_flag=True,
    help="Prepare no statements: for PgBouncer before 1.21, in transaction mode.",
)
@click.option("--quiet", is_flag=True, help="Warnings only; no summary when there was nothing to do.")
@pass_database
def apply(
    database: Database,
    app: str | None,
    topics: tuple[str, ...],
    workers: int,
    batch: int,
    http_timeout: float,
    http_read_timeout: float,
    http_connect_timeout: float,
    drain: bool,
    max_seconds: float | None,
    grace: float,
    log_format: str,
    no_prepare: bool,
    quiet: bool,
) -> int:
    """Apply the commands of every key strictly in turn; different keys in parallel.

    Serves the topics with SQL targets, those posted to a service over HTTP and, with
    --app, those with handlers in it. Posts are signed with INTURN_HTTP_SECRET_TOPIC,
    INTURN_HTTP_SECRET or what is in the file INTURN_HTTP_SECRET_FILE, if one is set.
    Any number of these may run at once, on any machines. SIGTERM and Ctrl-C stop it
    after the command in hand; a second one cuts that off.
    """
    logs.set_up(log_format, quiet=quiet)
    fleet = Fleet(
        database.conninfo,
        _load(app) if app else None,
        topics=topics,
        workers=workers,
        max_keys=batch,
        drain=drain,
        prepare=not no_prepare,
        schema=database.schema,
        http_timeouts=Timeouts(http_connect_timeout, http_read_timeout, http_timeout),
    )
    signals = _Signals()
    with database.connect(check=False):
        pass  # what is wrong with the database is best said before anything else
    fleet.start()
    logs.log.info("applying", extra={"topics": fleet.topics, "workers": workers})
    stop_at = time.monotonic() + max_seconds if max_seconds is not None else float("inf")
    with _Bar(fleet, shown=drain and not quiet and sys.stderr.isatty()) as bar:
        while fleet.running and not signals.count and time.monotonic() < stop_at:
            fleet.wait(_LOOK_SECONDS)
            bar.update()
        fleet.request_stop()
        end_at = time.monotonic() + grace
        while fleet.running and signals.count <= 1 and time.monotonic() < end_at:
            fleet.wait(_LOOK_SECONDS)
            bar.update()
    outcome = fleet.end(0)
    _summarise(outcome, log_format, quiet=quiet, with_rate=drain)
    if outcome.error is not None:
        raise outcome.error
    if outcome.cut:
        return ExitCode.UNFINISHED
    return ExitCode.HELD if drain and outcome.held else ExitCode.OK


class _Signals:
    """Counts the requests to stop."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._received)

    def _received(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


class _Bar:
    """A progress bar over what was ready at the start; nothing when it is not to be shown."""

    def __init__(self, fleet: Fleet, *, shown: bool) -> None:
        self._fleet = fleet
        self._progress = Progress(
            TextColumn("applying"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
            transient=True,
        )
        self._task = self._progress.add_task("applying", total=fleet.pending() if shown else None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def update(self) -> None:
        done = self._fleet.totals.commands
        total = self._progress.tasks[0].total
        more = max(done, total) if total is not None else None
        self._progress.update(self._task, completed=done, total=more)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _load(app: str) -> Applier:
    module_name, _, attribute = app.partition(":")
    if not module_name or not attribute:
        raise Failure(
            f"--app {app} names no applier",
            hint="Write MODULE:NAME, as shop.handlers:applier",
            code=ExitCode.USAGE,
        )
    # As `python -m` does: the user's modules are beside where the user stands.
    sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
    except Exception as error:
        raise Failure(
            f"--app {app} cannot be loaded: {type(error).__name__}: {error}",
            hint="Try it alone: python -c 'import " + module_name + "'",
        ) from error
    if not isinstance(found, Applier):
        raise Failure(
            f"--app {app} is a {type(found).__name__}, no inturn.applier.Applier",
            hint="Name the Applier that the handlers are registered with",
        )
    return found


def _summarise(outcome: Outcome, log_format: str, *, quiet: bool, with_rate: bool) -> None:
    # A turn may have found its key's caller still at work: that is nothing done.
    done = outcome.commands or outcome.failures or outcome.skipped
    if quiet and not (done or outcome.held or outcome.cut):
        return
    seconds = outcome.seconds
    line = f"applied {_count(outcome.commands, 'command')} in {seconds:.1f} s"
    if with_rate and outcome.commands and seconds:
        line += f" ({outcome.commands / seconds:,.0f}/s)"
    if outcome.failures:
        line += f", {outcome.failures:,} failed"
    if outcome.skipped:
        line += f", {outcome.skipped:,} skipped"
    if outcome.held:
        line += f", {_count(outcome.held, 'key')} held: see inturn keys --held"
    if outcome.cut:
        line += ", cut off a command when the grace was over"
    click.echo(
        logs.as_json(
            line,
            commands=outcome.commands,
            failures=outcome.failures,
            skipped=outcome.skipped,
            held=outcome.held,
            seconds=round(seconds, 3),
            cut=outcome.cut,
        )
        if log_format == "json"
        else line
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
