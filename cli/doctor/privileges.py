"""Roles and privileges: as schema/sql/grants.sql says, which is read here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

from inturn.cli.doctor.finding import Facts, Finding
from inturn.schema.source import created_names, rename, script, statements

_GRANT = re.compile(
    r"GRANT (?P<privileges>[A-Z, ]+?) ON (?P<kind>FUNCTION|ROUTINE|SCHEMA|ALL TABLES IN SCHEMA|)"
    r"\s*(?P<objects>.+?)\s+TO\s+(?P<roles>[\w, ]+);",
    re.DOTALL,
)
_COMMENT = re.compile(r"--[^\n]*")
_BETWEEN = re.compile(r",\s*(?![^()]*\))")


class Grant(NamedTuple):
    """One privilege of one role on one object. kind: FUNCTION, SCHEMA or TABLE."""

    role: str
    privilege: str
    kind: str
    object: str

    def sql(self, verb: str) -> str:
        kind = "ROUTINE" if self.kind == "FUNCTION" else self.kind
        direction = "TO" if verb == "GRANT" else "FROM"
        return f"{verb} {self.privilege} ON {kind} {self.object} {direction} {self.role}"


def roles(facts: Facts) -> Iterator[Finding]:
    names = _roles(facts.schema)
    there = {
        row["rolname"]: row for row in facts.rows("SELECT * FROM pg_roles WHERE rolname = ANY (%s)", names)
    }
    for name in names:
        if name not in there:
            yield Finding(
                "error",
                f"the role {name} is missing",
                "Create it, then see privileges",
                (f"CREATE ROLE {name}",),
            )
        elif any(there[name][power] for power in ("rolsuper", "rolcreaterole", "rolbypassrls")):
            yield Finding(
                "error",
                f"the role {name} has powers that every login with it gets",
                "Take them away",
                (f"ALTER ROLE {name} NOSUPERUSER NOCREATEROLE NOBYPASSRLS",),
            )


def privileges(facts: Facts) -> Iterator[Finding]:
    actual, expected = _actual(facts), _expected(facts)
    names = {row["rolname"] for row in facts.rows("SELECT rolname FROM pg_roles")}
    public = sorted(grant for grant in actual if grant.role == "PUBLIC")
    missing = sorted(grant for grant in expected - actual if grant.role in names)
    extra = sorted(grant for grant in actual - expected if grant.role != "PUBLIC")
    for level, grants, verb, says in (
        ("error", public, "REVOKE", "everybody (PUBLIC) has {} that nobody should have so"),
        (
            "error",
            missing,
            "GRANT",
            "the roles lack {}: a part of callers, appliers, operators or deployers cannot work",
        ),
        ("warning", extra, "REVOKE", "the roles have {} more than they need"),
    ):
        if grants:
            count = f"{len(grants)} privilege{'s' * (len(grants) > 1)}"
            yield Finding(
                "error" if level == "error" else "warning",
                says.format(count),
                "As the schema's owner, run what follows",
                tuple(grant.sql(verb) for grant in grants),
            )


def owner(facts: Facts) -> Iterator[Finding]:
    for row in facts.rows(
        "SELECT quote_ident(r.rolname) AS name FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner"
        " WHERE n.nspname = %s AND NOT r.rolsuper AND NOT pg_has_role(r.oid, 'pg_read_all_stats', 'usage')",
        facts.schema,
    ):
        yield Finding(
            "warning",
            f"the schema's owner, {row['name']}, may not see other users' sessions:"
            " why, list_appliers and the metrics of snapshots know less",
            "Grant it pg_monitor, as a superuser",
            (f"GRANT pg_monitor TO {row['name']}",),
        )


def public_schema(facts: Facts) -> Iterator[Finding]:
    if facts.rows(
        "SELECT 1 AS one FROM pg_namespace n"
        " CROSS JOIN aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a"
        " WHERE n.nspname = 'public' AND a.grantee = 0 AND a.privilege_type = 'CREATE'"
    ):
        yield Finding(
            "warning",
            "everybody may create functions and tables in the schema public: what SQL targets call without a"
            " schema may be somebody else's",
            "Revoke it, as its owner",
            ("REVOKE CREATE ON SCHEMA public FROM PUBLIC",),
        )


def _roles(schema: str) -> list[str]:
    return [f"{schema}_{name}" for name in ("caller", "applier", "operator", "admin")]


def _expected(facts: Facts) -> set[Grant]:
    """Return what grants.sql grants."""
    text = (files("inturn.schema") / "sql" / "grants.sql").read_text("utf-8")
    tables = [f"inturn.{name}" for name in ["schema_version", *created_names(script())]]
    relations = {
        row["name"]
        for row in facts.rows(
            "SELECT c.relname AS name FROM pg_class c WHERE c.relnamespace = %s::regnamespace"
            " AND c.relkind IN ('r', 'v')",
            facts.schema,
        )
    }
    found = []
    for statement in statements(_COMMENT.sub("", text)):
        if grant := _GRANT.fullmatch(statement):
            kind, objects = grant["kind"], _BETWEEN.split(grant["objects"])
            if kind == "ALL TABLES IN SCHEMA":
                objects = [name for name in tables if name.partition(".")[2] in relations]
            kind = {"ROUTINE": "FUNCTION", "FUNCTION": "FUNCTION", "SCHEMA": "SCHEMA"}.get(kind, "TABLE")
            found += [
                (role, privilege, kind, rename(f"SCHEMA {name}" if kind == "SCHEMA" else name, facts.schema))
                for role in re.split(r",\s*", rename(grant["roles"], facts.schema))
                for privilege in re.split(r",\s*", grant["privileges"])
                for name in objects
            ]
    return {Grant(role, privilege, kind, name) for role, privilege, kind, name in _named_alike(facts, found)}


def _named_alike(
    facts: Facts, grants: list[tuple[str, str, str, str]]
) -> Iterator[tuple[str, str, str, str]]:
    """Yield grants with the objects' names as the catalog writes them; objects that are gone are left out."""
    functions = sorted({name for _, _, kind, name in grants if kind == "FUNCTION"})
    alike = {
        row["given"]: row["name"]
        for row in facts.rows(
            "SELECT f.given, p.oid::regprocedure::text AS name FROM unnest(%s::text[]) f (given)"
            " JOIN pg_proc p ON p.oid = to_regprocedure(f.given)",
            functions,
        )
    }
    for role, privilege, kind, name in grants:
        if kind != "FUNCTION":
            yield role, privilege, kind, name.removeprefix("SCHEMA ")
        elif name in alike:
            yield role, privilege, kind, alike[name]


def _actual(facts: Facts) -> set[Grant]:
    """Return what the four roles and PUBLIC have on what is in the schema, but for the use of its types."""
    rows = facts.rows(
        """
        SELECT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS role,
               a.privilege_type AS privilege, o.kind, o.name
        FROM (SELECT 'SCHEMA' AS kind, n.oid::regnamespace::text AS name,
                     coalesce(n.nspacl, acldefault('n', n.nspowner)) AS acl
              FROM pg_namespace n WHERE n.oid = %s::regnamespace
              UNION ALL
              SELECT 'FUNCTION', p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner))
              FROM pg_proc p WHERE p.pronamespace = %s::regnamespace
              UNION ALL
              SELECT 'TABLE', c.relnamespace::regnamespace || '.' || c.relname,
                     coalesce(c.relacl, acldefault('r', c.relowner))
              FROM pg_class c WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'v')) o
        CROSS JOIN aclexplode(o.acl) a
        WHERE a.grantee = 0 OR a.grantee::regrole::text = ANY (%s)
        """,
        *[facts.schema] * 3,
        _roles(facts.schema),
    )
    return {Grant(row["role"], row["privilege"], row["kind"], row["name"]) for row in rows}
