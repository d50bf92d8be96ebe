"""`inturn metrics`: what the database says of the keys and of itself, as OpenMetrics."""

from __future__ import annotations

import click

from inturn.applier.metrics.reading import parts, read
from inturn.cli.database import Database, pass_database
from inturn.cli.errors import Failure
from inturn.cli.terminal.output import Ours, echo

MISSING = "prometheus_client is not installed"
MISSING_HINT = "pip install 'inturn[metrics]'"


@click.command(
    epilog="""\b
Example:
  inturn metrics
  inturn metrics --format text > inturn.new; mv inturn.new inturn.prom"""
)
@click.option(
    "--keys",
    type=click.IntRange(0, 1000),
    metavar="N",
    default=0,
    show_default=True,
    help="Name this many of the worst keys; each is a series of its own.",
)
@click.option(
    "--format",
    "as_format",
    type=click.Choice(["openmetrics", "text"]),
    default="openmetrics",
    show_default=True,
    help="text: Prometheus's older format, for node_exporter's textfile collector.",
)
@pass_database
def metrics(database: Database, /, *, keys: int, as_format: str) -> None:
    """Print metrics: keys by state and what is pending by topic, tables, snapshots.

    Appliers serve what they count themselves, such as how long handlers take: see
    inturn apply --metrics-port. Needs inturn_operator; without --keys, inturn_applier
    is enough.
    """
    try:
        from inturn.applier.metrics import exposition
    except ImportError as error:
        raise Failure(MISSING, hint=MISSING_HINT) from error
    with database.connect() as connection:
        reading = read(connection, parts(database.schema, keys))
    text = exposition.openmetrics(reading) if as_format == "openmetrics" else exposition.plain(reading)
    echo(Ours(text), nl=False)
