"""The roles of inturn, those that topics are granted to, and who owns what is in the schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from inturn.cli.doctor.finding import Facts, Finding
from inturn.cli.terminal.key_text import shown_topic
from inturn.schema.privileges import differences, powers_sql
from inturn.schema.source import created_names, script

#: What is in the schema, with its owner, its name, and the statement that gives it to another one.
_OWNED = """
    SELECT quote_ident(pg_get_userbyid(o.owner)), o.name, o.gives FROM (
        SELECT c.relowner, c.relname::text, format('ALTER TABLE {schema}.%I OWNER TO ', c.relname)
        FROM pg_class c WHERE c.relnamespace = to_regnamespace('{schema}') AND c.relkind IN ('r', 'p', 'v')
        UNION ALL
        SELECT p.proowner, p.proname::text, format('ALTER ROUTINE %s OWNER TO ', p.oid::regprocedure)
        FROM pg_proc p WHERE p.pronamespace = to_regnamespace('{schema}')) o (owner, name, gives)
    ORDER BY o.gives"""


def roles(facts: Facts) -> Iterator[Finding]:
    found = differences(facts.ask, facts.schema)
    for name in found.roles:
        yield Finding(
            "error",
            f"the role {name} is missing",
            "Run inturn upgrade, or create it and see privileges then",
            (f"CREATE ROLE {name}",),
        )
    for name in found.powerful:
        yield Finding(
            "error",
            f"the role {name} has powers that every login with it gets",
            "Take them away",
            (powers_sql(name),),
        )
    yield from _members(facts)
    yield from _gone(facts)


def _members(facts: Facts) -> Iterator[Finding]:
    """Find roles of inturn by which every login of them operates, deploys, or may do everything here."""
    names = [f"{facts.schema}_{role}" for role in ("operator", "admin", "caller", "applier")]
    for row in facts.rows(
        "SELECT quote_ident(m.rolname) AS member, quote_ident(r.rolname) AS role FROM pg_auth_members a"
        " JOIN pg_roles m ON m.oid = a.member JOIN pg_roles r ON r.oid = a.roleid"
        " WHERE m.rolname = ANY (%s) AND EXISTS ("
        "    SELECT FROM pg_roles p WHERE p.oid <> m.oid AND pg_has_role(r.oid, p.oid, 'member')"
        "      AND (p.rolsuper OR p.rolname = ANY (%s)"
        "           OR p.oid = (SELECT n.nspowner FROM pg_namespace n WHERE n.nspname = %s)))"
        " GROUP BY 1, 2 ORDER BY 1, 2",
        names,
        names[:2],
        facts.schema,
    ):
        yield Finding(
            "warning",
            f"the role {row['member']} is a member of {row['role']}: each login with it may do what that may",
            "Grant that to the logins that need it, and to no role of inturn",
            (f"REVOKE {row['role']} FROM {row['member']}",),
        )


def _gone(facts: Facts) -> Iterator[Finding]:
    """Find those that topics are granted to and that are not there: a grant is stored by name."""
    for row in facts.rows(
        "SELECT quote_ident(g.login) AS login, array_agg(DISTINCT g.topic ORDER BY g.topic) AS topics"
        " FROM {schema}.topic_grant g"
        " WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = g.login::name) GROUP BY 1 ORDER BY 1"
    ):
        topics = ", ".join(shown_topic(topic) for topic in row["topics"])
        yield Finding(
            "warning",
            f"{row['login']}, to which is granted: {topics}, is no role of this server. It was renamed or"
            " dropped, and a new role of that name has these topics",
            "Grant them to who it is now: inturn topic grant. Then take them from the old name: inturn topic"
            " revoke; with the last grant of a role a topic is open to everybody of it",
        )


def owner(facts: Facts) -> Iterator[Finding]:
    ours = {*created_names(script())}
    rows = facts.ask(_OWNED.format(schema=facts.schema))
    owned = [(role, gives) for role, name, gives in rows if name in ours]
    of_most = Counter(role for role, _ in owned).most_common(1)[0][0]
    if others := [(role, gives) for role, gives in owned if role != of_most]:
        names = ", ".join(sorted({role for role, _ in others}))
        yield Finding(
            "error",
            f"what is in the schema has several owners: {of_most}, and {names}. Functions run as their owner,"
            " which then may not do, or does not see, what they have to",
            "Give all to one, as a superuser",
            tuple(f"{gives}{of_most}" for _, gives in others),
        )
    yield from _creators(facts, of_most)
    yield from _sessions(facts)


def _creators(facts: Facts, installer: str) -> Iterator[Finding]:
    for row in facts.rows(
        "SELECT quote_ident(r.rolname) AS name FROM pg_namespace n CROSS JOIN aclexplode(n.nspacl) a"
        " JOIN pg_roles r ON r.oid = a.grantee WHERE n.nspname = %s AND a.privilege_type = 'CREATE'"
        " AND r.oid <> n.nspowner AND NOT r.rolsuper AND quote_ident(r.rolname) <> %s ORDER BY 1",
        facts.schema,
        installer,
    ):
        yield Finding(
            "warning",
            f"{row['name']} may create in the schema: a function that others call there may be its own",
            "Revoke it, as the schema's owner",
            (f"REVOKE CREATE ON SCHEMA {facts.schema} FROM {row['name']}",),
        )


def _sessions(facts: Facts) -> Iterator[Finding]:
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
