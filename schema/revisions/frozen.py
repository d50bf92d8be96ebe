"""How a revision runs its SQL, and how the first one takes back all that it created."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from inturn.schema.source import created_names, rename, statements

# Objects that others need are dropped in a later round than those. The one that is left in the end
# is needed from outside: dropping it raises what PostgreSQL says of that.
_DROP = """
DO $drop$
DECLARE
    statements text[] := ARRAY(
        SELECT format('DROP %s %s', object.type, object.identity)
        FROM pg_depend d
        CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) object
        LEFT JOIN pg_proc p ON p.oid = d.objid AND d.classid = 'pg_proc'::regclass
        WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = '{schema}'::regnamespace
          AND coalesce(p.proname, trim('"' FROM object.name)) = ANY ('{{{names}}}')
        ORDER BY array_position('{{view,procedure,function,type,table}}', object.type), object.identity);
    statement text;
    needed text[];
BEGIN
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

    Args:
        revision_file: the revision's own `__file__`.
        name: the name of the SQL file, written for the schema `inturn`.
    """
    execute(Path(revision_file).with_name(name).read_text("utf-8"))


def execute(sql: str) -> None:
    """Run SQL written for the schema `inturn` in the schema being installed; or print it."""
    _emit(rename(sql, _running.get().schema))


def drop(sql: str) -> None:
    """Drop the tables, views, types and routines that this SQL created; or print how.

    What is in the schema under other names stays, and so do the roles. What is gone already is not missed.

    Args:
        sql: what `execute` was given.

    Raises:
        sqlalchemy.exc.InternalError: of psycopg's DependentObjectsStillExist: something else depends on them.
    """
    _emit(_DROP.format(schema=_running.get().schema, names=",".join(created_names(sql))))


def _emit(sql: str) -> None:
    emit = _running.get().emit
    for statement in statements(sql):
        emit(statement)
