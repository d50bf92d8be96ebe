"""The one table of checks, in the order in which they are made."""

from __future__ import annotations

from collections.abc import Iterator

from inturn.cli.doctor import pooler, privileges, roles, server, sessions, topics
from inturn.cli.doctor.finding import Check, Facts, Finding
from inturn.schema.errors import SchemaMismatch
from inturn.schema.version import HEAD, check_version, installed_version


def revision(facts: Facts) -> Iterator[Finding]:
    try:
        check_version(facts.connection, facts.schema)
    except SchemaMismatch as error:
        yield Finding("error", error.message, error.hint)
    else:
        version = installed_version(facts.connection, facts.schema)
        if version != HEAD:
            yield Finding(
                "warning",
                f"schema {facts.schema} is at revision {version}, newer than this inturn's {HEAD},"
                " which it serves",
                "Upgrade this machine's package with: pip install --upgrade inturn;"
                " its doctor examines privileges too",
            )


CHECKS = (
    Check("revision", revision, installed=False),
    Check("version", server.version, installed=False),
    Check("durability", server.durability, installed=False),
    Check("synchronous-commit", server.synchronous_commit, installed=False),
    Check("autovacuum", server.autovacuum),
    Check("timeouts", server.timeouts, installed=False),
    Check("session-defaults", server.session_defaults, installed=False),
    Check("clock", server.clock, installed=False),
    Check("pooler", pooler.pooler, installed=False),
    Check("roles", roles.roles),
    Check("privileges", privileges.privileges),
    Check("owner", roles.owner),
    Check("public-schema", privileges.public_schema, installed=False),
    Check("long-transactions", sessions.long_transactions, installed=False),
    Check("prepared-transactions", sessions.prepared_transactions, installed=False),
    Check("replication-slots", sessions.replication_slots, installed=False),
    Check("standbys", sessions.standbys, installed=False),
    Check("notifications", sessions.notifications, installed=False),
    Check("appliers", topics.appliers),
    Check("targets", topics.targets),
)


def examine(facts: Facts) -> Iterator[tuple[str, Finding]]:
    """Make the checks; without the schema, or with another revision of it, those that need none.

    With one that is newer and serves this package, all but of privileges: what it needs only it knows.
    """
    installed = same = True
    for check in CHECKS:
        if (check.installed and not installed) or (check.name == "privileges" and not same):
            continue
        for finding in check.find(facts):
            if check.name == "revision":
                installed, same = finding.level != "error", False
            yield check.name, finding
