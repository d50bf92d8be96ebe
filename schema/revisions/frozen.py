"""How a revision runs its SQL, and how the first one takes back all that it created."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from inturn.schema.source import changed_tables, created_objects, rename, statements

# Objects that others need are dropped in a later round than those. The one that is left in the end
# is needed from outside: dropping it raises what PostgreSQL says of that. Of two of one kind and name,
# where we created one, nothing tells which one is ours.
_DROP = """
DO $drop$
DECLARE
    created CONSTANT text[] := '{{{created}}}';
    statements text[];
    statement text;
    needed text[];
    namesakes text;
BEGIN
    WITH objects AS (
        SELECT object.type, object.identity,
               object.type || ' ' || coalesce(p.proname, trim('"' FROM object.name)) AS name
        FROM pg_depend d
        CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) object
        LEFT JOIN pg_proc p ON p.oid = d.objid AND d.classid = 'pg_proc'::regclass
        WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = '{schema}'::regnamespace)
    SELECT array_agg(format('DROP %s %s', type, identity)
                     ORDER BY array_position('{{view,procedure,function,type,table}}', type), identity),
           (SELECT string_agg(names, ', ') FROM (
                SELECT string_agg(identity, ' or ' ORDER BY identity) FROM objects WHERE name = ANY (created)
                GROUP BY name HAVING count(*) > cardinality(array_positions(created, name))) more (names))
    INTO statements, namesakes
    FROM objects WHERE name = ANY (created);
    IF namesakes IS NOT NULL THEN
        RAISE EXCEPTION 'schema {schema} is not removed: it holds what is not inturn''s: %', namesakes
            USING ERRCODE = 'object_in_use';
    END IF;
    WHILE cardinality(statements) > 0 LOOP
        needed := '{{}}';
        FOREACH statement IN ARRAY statements LOOP
            BEGIN
                EXECUTE statement;
            EXCEPTION WHEN dependent_objects_still_exist THEN
                needed := needed || statement;
            END;
        END LOOP;
        IF needed = statements THEN
            EXECUTE needed[1];
        END IF;
        statements := needed;
    END LOOP;
END
$drop$;
"""


@dataclass(frozen=True)
class _Running:
    """What the revisions that run now work on."""

    schema: str
    emit: Callable[[str], None]


#: Not Alembic's `op`: a service's own migration may be what runs us, and has that.
_running: ContextVar[_Running] = ContextVar("inturn_revisions")


@contextmanager
def running(schema: str, emit: Callable[[str], None]) -> Iterator[None]:
    """Have revisions work on this schema for a block.

    Args:
        emit: is given one statement after the other, to run it or to print it.
    """
    token = _running.set(_Running(schema, emit))
    try:
        yield
    finally:
        _running.reset(token)


def run(revision_file: str, name: str) -> None:
    """Run the frozen file NAME, which lies beside the revision; or print it when a script is asked for.

    The tables that it changes are locked first, all in one order, and so that a lock that cannot be had is
    missed before anything is done.

    Args:
        revision_file: the revision's own `__file__`.
        name: the name of the SQL file, written for the schema `inturn`.
    """
    sql = Path(revision_file).with_name(name).read_text("utf-8")
    if changed := changed_tables(sql):
        names = ", ".join(f"inturn.{table}" for table in changed)
        execute(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE;")
    execute(sql)


def execute(sql: str) -> None:
    """Run SQL written for the schema `inturn` in the schema being installed; or print it."""
    _emit(rename(sql, _running.get().schema))


def drop(sql: str) -> None:
    """Drop the tables, views, types and routines that this SQL created; or print how.

    What is in the schema under other names stays, and so do the roles. What is gone already is not missed.

    Args:
        sql: what `execute` was given.

    Raises:
        sqlalchemy.exc.DBAPIError: of psycopg's DependentObjectsStillExist, something else depends on them;
            of its ObjectInUse, something else has the kind and name of one of them.
    """
    created = ",".join(f'"{one}"' for one in sorted(created_objects(sql).elements()))
    _emit(_DROP.format(schema=_running.get().schema, created=created))


def _emit(sql: str) -> None:
    emit = _running.get().emit
    for statement in statements(sql):
        emit(statement)
