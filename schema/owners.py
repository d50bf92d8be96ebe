"""Who owns the functions that targets and merge rules name: recorded anew in a copy on another server."""

from __future__ import annotations

from inturn.schema.privileges import Change, Report
from inturn.schema.strangers import Ask

_MAY = """
    SELECT 1 FROM pg_catalog.pg_proc p
    WHERE p.pronamespace = pg_catalog.to_regnamespace('{schema}') AND p.proname = '_record_owners'
      AND pg_catalog.pg_has_role(p.proowner, 'USAGE')"""


def record_anew(ask: Ask, schema: str, report: Report | None = None) -> None:
    """Record which roles the owners of these functions are here, where their names are the recorded ones.

    A login that is not the schema's owner records nothing.

    Args:
        ask: in a session whose search_path does not name the schema.
        schema: a checked name, of a schema of today's revision.
        report: is told of each function that was refused until now.

    Raises:
        Whatever `ask` does.
    """
    if [*ask(_MAY.format(schema=schema))]:
        for (statement,) in ask(f"SELECT {schema}._record_owners()"):
            if report is not None:
                report(Change(statement, done=True))
