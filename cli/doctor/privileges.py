"""Privileges: as schema/sql/grants.sql says, see inturn.schema.privileges."""

from __future__ import annotations

from collections.abc import Iterator

from inturn.cli.doctor.finding import Facts, Finding
from inturn.schema import row_security
from inturn.schema.privileges import differences


def privileges(facts: Facts) -> Iterator[Finding]:
    found = differences(facts.ask, facts.schema)
    for level, grants, verb, says in (
        ("error", found.public, "REVOKE", "everybody (PUBLIC) has {} that nobody should have so"),
        (
            "error",
            found.opened,
            "REVOKE",
            "default privileges (ALTER DEFAULT PRIVILEGES) have given others {}, as after a restore",
        ),
        (
            "error",
            found.missing,
            "GRANT",
            "the roles lack {}: a part of callers, appliers, operators or deployers cannot work",
        ),
        ("warning", found.extra, "REVOKE", "the roles have {} more than they need"),
    ):
        if grants:
            count = f"{len(grants)} privilege{'s' * (len(grants) > 1)}"
            yield Finding(
                "error" if level == "error" else "warning",
                says.format(count),
                "As the schema's owner, run inturn upgrade, or what follows",
                tuple(grant.sql(verb) for grant in grants),
            )
    if policies := row_security.wrong(facts.ask, facts.schema):
        yield Finding(
            "error",
            "row level security is not as it must be: operators, or inturn's own functions, see more of the"
            " tables than they may, or less than they need",
            "As the schema's owner, run inturn upgrade, or what follows",
            tuple(policies),
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
