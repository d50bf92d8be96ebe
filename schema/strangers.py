"""What lies in the schema and is not ours: nothing is installed beside it, and it is not removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from typing import Any, TypeAlias

from inturn.schema.errors import NoPrivilege, SchemaInUse
from inturn.schema.source import created_objects

#: Runs a query without parameters and returns its rows.
Ask: TypeAlias = Callable[[str], Iterable[Sequence[Any]]]

#: So many are named in an error.
_NAMED = 3

# Every object of the schema, the latest last, but what is a part of another one, as a column's sequence is.
_OBJECTS = """
    SELECT object.type AS type, coalesce(p.proname, pg_catalog.btrim(object.name, '"'), '') AS name,
           pg_catalog.concat_ws(' ', object.type, object.identity) AS said
    FROM pg_catalog.pg_depend d
    CROSS JOIN LATERAL pg_catalog.pg_identify_object(d.classid, d.objid, 0) object
    LEFT JOIN pg_catalog.pg_proc p ON p.oid = d.objid AND d.classid = 'pg_catalog.pg_proc'::regclass
    WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass
      AND d.refobjid = pg_catalog.to_regnamespace('{schema}')
      AND NOT EXISTS (
          SELECT FROM pg_catalog.pg_depend whole
          WHERE whole.classid = d.classid AND whole.objid = d.objid AND whole.deptype IN ('a', 'i')
            AND whole.refclassid = 'pg_catalog.pg_class'::regclass)
    ORDER BY d.objid"""

# Whoever owns the schema, or may create in it, may put code of his own in the place of ours. A superuser may
# anyhow, and who owns the database may drop it. A role whose rights the login has counts as the login itself:
# not one that it has made, and is a member of for that alone (16 and later).
_OTHERS = """
    WITH RECURSIVE mine (oid) AS (
        SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user
        UNION SELECT m.roleid FROM pg_catalog.pg_auth_members m JOIN mine ON m.member = mine.oid)
    SELECT pg_catalog.format('%s, who %s', r.name, does)
    FROM pg_catalog.pg_namespace n
    CROSS JOIN LATERAL (
        SELECT n.nspowner AS role, 'owns it' AS does
        UNION ALL
        SELECT a.grantee, 'may create in it' FROM pg_catalog.aclexplode(n.nspacl) a
        WHERE a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner) other
    JOIN (SELECT oid, pg_catalog.quote_ident(rolname), rolsuper FROM pg_catalog.pg_roles
          UNION ALL SELECT 0, 'PUBLIC', false) r (oid, name, super) ON r.oid = other.role
    WHERE n.nspname = '{schema}' AND NOT r.super AND r.name <> 'pg_database_owner'
      AND r.oid NOT IN (
          SELECT oid FROM mine WHERE pg_catalog.pg_has_role(oid, 'USAGE') UNION ALL
          SELECT datdba FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"""

_GUARD = """DO $check$
DECLARE
    found CONSTANT text := (
        SELECT pg_catalog.string_agg(problem, ', ') FROM (
            (SELECT said FROM ({objects}) o
             WHERE NOT (type || ' ' || name) = ANY ('{{{ours}}}') LIMIT {named})
            UNION ALL ({others} LIMIT {named})
        ) problems (problem));
BEGIN
    IF EXISTS (
        SELECT FROM pg_catalog.pg_attribute
        WHERE attrelid = pg_catalog.to_regclass('{schema}.schema_version') AND attname = 'version_num'
    ) THEN
        {installed}
    ELSIF found IS NOT NULL THEN
        RAISE EXCEPTION 'schema {schema} is not inturn''s alone: %', found
            USING ERRCODE = 'object_in_use', HINT = 'Choose another name, or an empty schema of your own.';
    END IF;
END
$check$;"""
_INSTALLED = """RAISE EXCEPTION 'schema {schema} is installed already'
            USING ERRCODE = 'duplicate_schema', HINT = 'A script that upgrades names the database.';"""


def receiver_objects() -> Counter[str]:
    """Return what the receiver's guard creates: kind and name, and how often."""
    return created_objects((files("inturn.schema.receiver") / "0001_accept.sql").read_text("utf-8"))


def guard_script(schema: str) -> str:
    """Return SQL that refuses a schema which `refuse_taken` would refuse, and one that is installed already.

    Args:
        schema: a checked name.
    """
    return _guard(schema, receiver_objects(), _INSTALLED.format(schema=schema))


def receiver_guard_script(schema: str) -> str:
    """Return the same for the receiver's guard: the schema of inturn itself may be there."""
    return _guard(schema, Counter(), "NULL;")


def _guard(schema: str, beside: Counter[str], installed: str) -> str:
    return _GUARD.format(
        objects=_OBJECTS.format(schema=schema),
        others=_OTHERS.format(schema=schema),
        ours=",".join(f'"{one}"' for one in sorted(beside)),
        named=_NAMED,
        installed=installed,
        schema=schema,
    )


_MAY_CREATE = """
    SELECT pg_catalog.quote_ident(pg_catalog.current_database()), pg_catalog.quote_ident(current_user),
           CASE WHEN pg_catalog.to_regnamespace('{schema}') IS NULL
                THEN pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')
                ELSE pg_catalog.has_schema_privilege('{schema}', 'CREATE') END,
           pg_catalog.to_regnamespace('{schema}') IS NULL"""


def refuse_no_privilege(ask: Ask, schema: str) -> None:
    """Make sure that the login may create the schema, or in it where a DBA has made it.

    Args:
        schema: a checked name.

    Raises:
        NoPrivilege: it may not.
    """
    ((database, login, may, is_missing),) = ask(_MAY_CREATE.format(schema=schema))
    if may:
        return
    if is_missing:
        raise NoPrivilege(
            f"login {login} may not create schema {schema} in database {database}",
            hint=f"Have the database's owner run: GRANT CREATE ON DATABASE {database} TO {login};"
            f" or: CREATE SCHEMA {schema} AUTHORIZATION {login}",
        )
    raise NoPrivilege(
        f"login {login} may not create anything in schema {schema} of database {database}",
        hint=f"Have the schema's owner run: ALTER SCHEMA {schema} OWNER TO {login}; or install as the owner",
    )


def refuse_taken(ask: Ask, schema: str, beside: Counter[str]) -> None:
    """Make sure that a schema which is there already can be installed into.

    Args:
        schema: a checked name.
        beside: what of ours may lie in it already.

    Raises:
        SchemaInUse: it holds something else, or somebody else owns it or may create in it.
    """
    refuse_strangers(ask, schema, beside, doing="is not installed into")
    found = [said for (said,) in ask(_OTHERS.format(schema=schema))]
    if found:
        raise SchemaInUse(
            f"schema {schema} is not installed into: it belongs to others too, {', '.join(found[:_NAMED])}",
            hint=f"Run: ALTER SCHEMA {schema} OWNER TO the login that installs it;"
            f" REVOKE CREATE ON SCHEMA {schema} FROM everybody else",
        )


def refuse_strangers(ask: Ask, schema: str, ours: Counter[str], *, doing: str) -> None:
    """Make sure that nothing lies in the schema but what is ours.

    Args:
        schema: a checked name.
        ours: kind and name of what may lie in it, and how many of that name.
        doing: what is refused otherwise, as in "is not removed".

    Raises:
        SchemaInUse: something does; the first ones are named.
    """
    left = Counter(ours)
    strangers = []
    for kind, name, said in ask(_OBJECTS.format(schema=schema)):
        one = f"{kind} {name}"
        left[one] -= 1
        if left[one] < 0:
            strangers.append(said)
    if strangers:
        more = f" and {len(strangers) - _NAMED} more" if len(strangers) > _NAMED else ""
        raise SchemaInUse(
            f"schema {schema} {doing}: it holds what is not inturn's: {', '.join(strangers[:_NAMED])}{more}",
            hint="Drop that, or move it to another schema; or give inturn another one by --schema",
        )
