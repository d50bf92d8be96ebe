"""`inturn doctor`: what is not as it should be with the server, the schema and the appliers."""

from __future__ import annotations

from collections.abc import Iterator

import click

from inturn.cli.advice import advised
from inturn.cli.database import Database, pass_database
from inturn.cli.doctor.checks import CHECKS, examine
from inturn.cli.doctor.finding import Facts, Finding
from inturn.cli.exit_codes import ExitCode
from inturn.cli.terminal.output import echo, echo_all, json_option, print_json
from inturn.cli.terminal.seconds import Seconds

#: How many statements are printed of a finding; --json has all.
_STATEMENTS = 3


@click.command(
    epilog="""\b
Exit codes: 0 nothing found, or warnings only; 9 an error was found, with
--strict also a warning; 4 database unreachable.

\b
Example:
  inturn doctor
  inturn doctor --strict --json
  0 5 * * * inturn doctor --strict --quiet"""
)
@click.option("--strict", is_flag=True, help="Exit with 9 for a warning too.")
@click.option(
    "--long",
    "long_seconds",
    type=Seconds(min=0),
    metavar="SECONDS",
    default=300.0,
    show_default=True,
    help="Report transactions that have been open for this long.",
)
@click.option("--quiet", is_flag=True, help="Print nothing if nothing is found, for cron.")
@json_option
@pass_database
def doctor(database: Database, /, *, strict: bool, long_seconds: float, quiet: bool, as_json: bool) -> int:
    """Examine the server, the schema and the appliers, and say what to do about each finding.

    Looks at version and settings, roles and privileges, long transactions, topics
    that nobody serves, missing targets and more. It only reads. Needs inturn_operator.
    For keys that stand still, see status and verify.
    """
    with database.connect(check=False) as connection:
        found = [
            (check, finding._replace(do=advised(finding.do)))
            for check, finding in examine(Facts(connection, database.schema, long_seconds))
        ]
    if quiet and not found:
        return ExitCode.OK
    if as_json:
        document = [{"check": check, **finding._asdict()} for check, finding in found]
        print_json({"checks": [check.name for check in CHECKS], "findings": document})
    else:
        for check, finding in found:
            echo_all(_lines(check, finding))
        if not found:
            echo(f"{len(CHECKS)} checks, nothing found")
    bad = any(strict or finding.level == "error" for _, finding in found)
    return ExitCode.UNHEALTHY if bad else ExitCode.OK


def _lines(check: str, finding: Finding) -> Iterator[str]:
    yield f"{finding.level} {check}: {finding.says}"
    yield f"  {finding.do}"
    for statement in finding.sql[:_STATEMENTS]:
        yield f"    {statement};"
    if len(finding.sql) > _STATEMENTS:
        yield f"    and {len(finding.sql) - _STATEMENTS} more: see --json"
