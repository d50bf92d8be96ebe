"""The command `inturn apply`: a fleet of workers, from cron or as a daemon."""

from __future__ import annotations

import functools
import sys

import click

from inturn.applier import Outcome
from inturn.applier.process.connections import warn_superuser
from inturn.cli.advice import program
from inturn.cli.database import Database, pass_database
from inturn.cli.exit_codes import ExitCode
from inturn.cli.run import logs
from inturn.cli.run.metrics import Port, metrics_options, serving
from inturn.cli.run.processes import Processes
from inturn.cli.run.serve import Attended, Options, Signals, attend, begun, ending, exit_code
from inturn.cli.terminal.bar import Bar
from inturn.cli.terminal.output import echo
from inturn.cli.terminal.seconds import Seconds

_EPILOG = """\b
Exit codes: 0 nothing is ready any more, or stopped as asked; 1 refused or
failed, or a process died; 3 drained, but some keys are held; 4 database
unreachable; 5 schema missing or of another revision; 6 the grace ran out and
a command was cut off (it is rolled back, and tried again later); 10 too many
handlers hang.

\b
Example:
  inturn apply --app shop.handlers:applier --workers 4
  inturn apply --app shop.handlers:applier --processes 2 --workers 4
  * * * * * inturn apply --drain --max-seconds 55 --quiet"""


#: How many topics the line names that says what is applied.
FEW_TOPICS = 5


@click.command(epilog=_EPILOG, short_help="Apply commands, each key in turn.")
@click.option("--app", metavar="MODULE:NAME", help="The Applier with the Python handlers.")
@click.option(
    "--topic", "topics", metavar="NAME", multiple=True, help="Serve this topic only; may be repeated."
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    metavar="N",
    default=1,
    show_default=True,
    help="Threads, each with its own connection.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    metavar="N",
    default=1,
    show_default=True,
    help="Processes, each with that many workers. Use several if Python keeps one processor busy.",
)
@click.option(
    "--max-keys",
    type=click.IntRange(1, 60),
    metavar="N",
    default=50,
    show_default=True,
    help="The most keys that share a transaction, as long as it stays short.",
)
@click.option(
    "--http-timeout",
    type=Seconds(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds that a post to a service may take in total.",
)
@click.option(
    "--http-read-timeout",
    type=Seconds(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds to wait for the next byte of the answer.",
)
@click.option(
    "--http-connect-timeout",
    type=Seconds(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds to connect to the service.",
)
@click.option("--prune", is_flag=True, help="While nothing is ready, remove what topics' retain allows.")
@click.option("--drain", is_flag=True, help="Stop when nothing is ready, instead of waiting for more.")
@click.option(
    "--max-seconds",
    type=Seconds(min=0, min_open=True),
    help="After this many seconds, finish the current commands and stop.",
)
@click.option(
    "--grace",
    type=Seconds(min=0),
    default=30.0,
    show_default=True,
    help="Seconds that the current commands may take when stopping.",
)
@metrics_options
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="The format of the log (stderr) and of the summary (stdout).",
)
@click.option(
    "--no-prepare",
    is_flag=True,
    help="Do not prepare statements: for a pooler that inturn does not recognize.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="The lowest level that is logged, also of handlers. [default: info; with --quiet warning]",
)
@click.option("--quiet", is_flag=True, help="Log only warnings; no summary if there was nothing to do.")
@pass_database
def apply(
    database: Database,
    app: str | None,
    topics: tuple[str, ...],
    workers: int,
    processes: int,
    max_keys: int,
    http_timeout: float,
    http_read_timeout: float,
    http_connect_timeout: float,
    prune: bool,
    drain: bool,
    max_seconds: float | None,
    grace: float,
    metrics_port: int | None,
    metrics_host: str,
    log_format: str,
    no_prepare: bool,
    log_level: str | None,
    quiet: bool,
) -> int:
    """Apply the commands of every key strictly in turn; different keys in parallel.

    Serves the topics with SQL targets, the topics with HTTP targets and, with --app,
    the topics that the app has handlers for. If one of the variables
    INTURN_HTTP_SECRET_TOPIC, INTURN_HTTP_SECRET or INTURN_HTTP_SECRET_FILE is set,
    posts are signed. Any number of appliers may run at once, on any machines. SIGTERM
    and Ctrl-C stop it after the current commands; a second signal cuts them off. If
    one of several processes dies, the others end too, and the exit code is 1.
    """
    options = Options(
        dsn=database.conninfo,
        schema=database.schema,
        app=app,
        topics=topics,
        workers=workers,
        max_keys=max_keys,
        http_timeouts=(http_connect_timeout, http_read_timeout, http_timeout),
        drain=drain,
        prepare=not no_prepare,
        max_seconds=max_seconds,
        grace=grace,
        log_format=log_format,
        quiet=quiet,
        log_level=log_level,
        counts=metrics_port is not None,
        prune=prune,
    )
    port = None if metrics_port is None else Port(metrics_host, metrics_port)
    logs.set_up(log_format, level=options.level)
    return _run(database, options, port) if processes == 1 else _run_many(database, options, port, processes)


def _few(topics: list[str]) -> list[str]:
    """Return the first topics, and how many more there are: a line with ten thousand names helps nobody."""
    return topics if len(topics) <= FEW_TOPICS else [*topics[:FEW_TOPICS], f"{len(topics) - FEW_TOPICS} more"]


def _run(database: Database, options: Options, port: Port | None) -> int:
    """Run the fleet in this process; return the exit code."""
    fleet = options.fleet()
    signals = Signals()
    if not begun(functools.partial(_check, database), signals.requests):
        return ExitCode.OK
    with serving(port, options.dsn, options.schema, fleet.tallies.snapshot), ending(fleet, options.grace):
        ran = begun(fleet.start, signals.requests)
        if ran:
            logs.log.info("applying", extra={"topics": _few(fleet.topics), "workers": options.workers})
        outcome = _attend(fleet, signals, options) if ran else fleet.end(options.grace)
    return _conclude(outcome, options, ran=ran)


def _run_many(database: Database, options: Options, port: Port | None, count: int) -> int:
    """Run the fleet in each of several processes; return the exit code."""
    signals = Signals()
    if not begun(functools.partial(_check, database, warn=True), signals.requests):
        return ExitCode.OK
    with (
        Processes(options, count, signals.requests) as fleet,
        serving(port, options.dsn, options.schema, fleet.counted),
        ending(fleet, options.grace),
    ):
        fleet.start()
        if fleet.started:
            extra = {"topics": _few(fleet.topics), "workers": options.workers, "processes": count}
            logs.log.info("applying", extra=extra)
        outcome = _attend(fleet, signals, options)
    return _conclude(outcome, options, ran=fleet.ran)


def _check(database: Database, *, warn: bool = False) -> None:
    """Connect once: what is wrong with the database is best said before anything else."""
    with database.connect(check=False) as connection:
        if warn:
            warn_superuser(connection)


def _attend(fleet: Attended, signals: Signals, options: Options) -> Outcome:
    shown = options.drain and not options.quiet and sys.stderr.isatty()
    with Bar("applying", fleet.pending() if shown else 0, shown=shown) as bar:
        return attend(
            fleet,
            signals.requests,
            lambda: bar.update(fleet.totals.commands),
            grace=options.grace,
            max_seconds=options.max_seconds,
        )


def _conclude(outcome: Outcome, options: Options, *, ran: bool = True) -> int:
    """Print the summary, if anything ran; return the exit code, or raise what ended the fleet."""
    if ran:
        _summarise(outcome, options.log_format, quiet=options.quiet, with_rate=options.drain)
    if outcome.error is not None:
        raise outcome.error
    return exit_code(outcome, options)


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
        line += f", {_count(outcome.held, 'key')} held: see {program()} keys --held"
    if outcome.cut:
        line += ", cut off a command when the grace was over"
    echo(
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
