"""Row level security: what grants.sql sets up, and how it comes to be so again where it was taken away."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from inturn.schema.source import created_objects, grants_script, rename, script, statements
from inturn.schema.strangers import Ask

_SETS_UP = re.compile(
    r"^(?:ALTER TABLE inturn\.(?P<secured>\w+) ENABLE ROW LEVEL SECURITY"
    r"|CREATE POLICY granted ON inturn\.(?P<table>\w+) (?P<using>USING .*));$",
    re.MULTILINE,
)
_INVOKES = re.compile(r"ALTER VIEW inturn\.(\w+) SET \(security_invoker = true\)")
#: The policy is ours as long as it asks our function; what else it says is not compared. Others count if they
#: are for everybody or our roles: they would show them more, or less.
_ACTUAL = """
    SELECT c.relname, c.relrowsecurity, c.relforcerowsecurity,
           ARRAY(SELECT pg_catalog.quote_ident(o.polname) FROM pg_catalog.pg_policy o
                 WHERE o.polrelid = c.oid AND o.polname <> 'granted' AND (0 = ANY (o.polroles) OR EXISTS (
                     SELECT FROM pg_catalog.pg_roles r WHERE r.oid = ANY (o.polroles)
                         AND r.rolname ~ '^{schema}_(caller|applier|operator|admin)$'))
                 ORDER BY 1),
           p.oid IS NOT NULL,
           p.polpermissive AND p.polcmd = '*' AND p.polroles = '{{0}}' AND EXISTS (
               SELECT FROM pg_catalog.pg_depend d
               JOIN pg_catalog.pg_proc f ON f.oid = d.refobjid AND f.pronamespace = c.relnamespace
               WHERE d.classid = 'pg_catalog.pg_policy'::regclass AND d.objid = p.oid
                 AND d.refclassid = 'pg_catalog.pg_proc'::regclass AND f.proname = '_hidden_topics')
    FROM pg_catalog.pg_class c
    LEFT JOIN pg_catalog.pg_policy p ON p.polrelid = c.oid AND p.polname = 'granted'
    WHERE c.relnamespace = pg_catalog.to_regnamespace('{schema}') AND c.relkind IN ('r', 'p')
      AND NOT c.relispartition"""
#: Since 15 a view can read with the rights of whoever asks; one that comes from 14 does not.
_VIEWS = """
    SELECT c.relname FROM pg_catalog.pg_class c
    WHERE c.relnamespace = pg_catalog.to_regnamespace('{schema}') AND c.relkind = 'v'
      AND pg_catalog.current_setting('server_version_num')::integer >= 150000
      AND NOT coalesce('security_invoker=true' = ANY (c.reloptions), false)"""
_OWNS = """
    SELECT 1 FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass('{schema}.command_log')
    AND pg_catalog.pg_has_role(c.relowner, 'USAGE')"""


def wrong(ask: Ask, schema: str) -> list[str]:
    """Return the statements that put right what is not as it must be; none where everything is.

    Restored without policies, or once they were switched off, tables show operators every topic. Where it is
    forced, the functions of inturn too find only what whoever calls them may see.

    Args:
        ask: in a session whose search_path does not name the schema.
        schema: a checked name.

    Raises:
        Whatever `ask` does.
    """
    actual = {name: state for name, *state in ask(_ACTUAL.format(schema=schema))}
    views = {name for (name,) in ask(_VIEWS.format(schema=schema))}
    return [rename(statement, schema) for statement in (*_wrong(actual), *_wrong_views(views))]


def set_right(
    ask: Ask,
    run: Callable[[str], None],
    lock: Callable[[Callable[[], None]], None],
    schema: str,
    tell: Callable[..., None],
) -> None:
    """Put it right, where this login may. Where everything is, nothing is written.

    Args:
        ask: as for `wrong`.
        run: runs a statement.
        lock: runs what waits for the tables' locks.
        schema: a checked name.
        tell: is told of the statements, and whether they were run.

    Raises:
        Whatever `ask`, `run` and `lock` do.
    """
    wanted = wrong(ask, schema)
    owns = bool([*ask(_OWNS.format(schema=schema))])

    def change() -> None:
        for statement in wanted:
            run(statement)

    if wanted and owns:
        lock(change)
    tell(wanted, done=owns)


def _wrong(actual: dict[str, list[Any]]) -> Iterator[str]:
    secured = set()
    for found in _SETS_UP.finditer("\n".join(statements(grants_script()))):
        table = found["secured"] or found["table"]
        secured.add(table)
        is_secured, is_forced, others, is_there, is_ours = actual.get(table, [True, False, [], True, True])
        if found["secured"]:
            if not is_secured:
                yield found[0].removesuffix(";")
            if is_forced:
                yield f"ALTER TABLE inturn.{table} NO FORCE ROW LEVEL SECURITY"
            yield from (f"DROP POLICY {policy} ON inturn.{table}" for policy in others)
        elif not is_there:
            yield found[0].removesuffix(";")
        elif not is_ours:
            yield f"DROP POLICY granted ON inturn.{table}"
            yield found[0].removesuffix(";")
    # Where we have no policy, it would hide everything.
    for table in sorted({*actual} - secured):
        if actual[table][0] and f"table {table}" in created_objects(script()):
            yield f"ALTER TABLE inturn.{table} DISABLE ROW LEVEL SECURITY"


def _wrong_views(views: set[str]) -> Iterator[str]:
    for found in _INVOKES.finditer(grants_script()):
        if found[1] in views:
            yield found[0]
