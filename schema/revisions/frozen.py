"""How a revision runs its SQL, and how the first one takes back all that it created."""

from __future__ import annotations

from pathlib import Path

from alembic import context, op

from inturn.schema.source import created_names, rename

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


def run(revision_file: str, name: str) -> None:
    """Run the frozen file NAME, which lies beside the revision; or print it when a script is asked for.

    Args:
        revision_file: the revision's own `__file__`.
        name: the name of the SQL file, written for the schema `inturn`.
    """
    execute(Path(revision_file).with_name(name).read_text("utf-8"))


def execute(sql: str) -> None:
    """Run SQL written for the schema `inturn` in the schema being installed; or print it."""
    _execute(rename(sql, context.config.attributes["schema"]))


def drop(sql: str) -> None:
    """Drop the tables, views, types and routines that this SQL created; or print how.

    What is in the schema under other names stays, and so do the roles. What is gone already is not missed.

    Args:
        sql: what `execute` was given.

    Raises:
        sqlalchemy.exc.InternalError: of psycopg's DependentObjectsStillExist: something else depends on them.
    """
    schema = context.config.attributes["schema"]
    _execute(_DROP.format(schema=schema, names=",".join(created_names(sql))))


def _execute(sql: str) -> None:
    if context.is_offline_mode():
        op.get_context().impl.static_output(sql)
    else:
        # Without parameters: the script is many statements, and a % in it is a %.
        op.get_bind().execution_options(no_parameters=True).exec_driver_sql(sql)
