"""Every login of the tests but the installer's is one of the roles, and none is a superuser."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from support import roles
from support.database import Database
from support.place import TESTS
from support.process import run_inturn
from support.shop import append, apply_all, open_shop
from support.terminal import commands_of

from inturn.applier import Fleet
from inturn.cli.main import cli
from inturn.outbox import append as append_in_python

#: Each file that names a superuser, and what for.
BY_NAME = {
    "applier/test_sessions.py": "drops the login that it made, whose database that is",
    "cli/test_cli_lost.py": "ends a session, whosever it is",
    "cli/test_cli_odd_values.py": "makes a database in another encoding",
    "cli/test_cron.py": "makes the extension pg_cron",
    "cli/test_crontabs.py": "sets what is in force in the whole server",
    "cli/test_demo.py": "comments on the demo's database, and drops it",
    "cli/test_doctor.py": "takes roles away, and gives them powers",
    "cli/test_doctor_settings.py": "sets what is in force in the whole server",
    "cli/why/test_why_standing_still.py": "gives a function to somebody who may not create in its schema",
    "conformance/test_merging.py": "gives a function to somebody who may not create in its schema",
    "docs/test_docs.py": "is the DBA of the pages, who makes logins",
    "environment/test_encodings.py": "makes databases in other encodings",
    "environment/test_synchronous_standby.py": "sets what is in force in the whole server",
    "package/test_bench_peers.py": "looks for databases",
    "package/test_compose.py": "is the DBA of docker-compose.yml",
    "promises/p1_commit_order/test_p1_arrival_passes.py": "lets the server not tell which one it is",
    "promises/p5_independence/test_p5_charges.py": "ends a session, whosever it is",
    "promises/p5_independence/test_p5_sessions.py": "lets a target set what only a superuser may",
    "recovery/test_failover.py": "is the DBA: replication, ALTER SYSTEM",
    "recovery/test_major_upgrade.py": "is the DBA: takes roles away, before a dump without privileges",
    "recovery/test_point_in_time.py": "is the DBA: restore point, archive",
    "schema/test_schema_default_privileges.py": "dumps, and gives a function to somebody else and back",
    "schema/test_schema_install.py": "makes an event trigger",
    "schema/test_schema_privileges.py": "takes roles away, and powers from roles",
    "security/test_code_of_others.py": "applies as one: the warning, and the attack of a session's function",
    "security/test_logins.py": "tests that one is found",
    "security/test_managed_server.py": "is the DBA of the managed server",
    "security/test_names.py": "runs every command as one, beside planted functions",
    "security/test_owners_of_code.py": "renames roles, drops them, and gives functions to others",
    "security/test_schema_not_ours.py": "installs as one where somebody has planted the schema",
    "security/test_topic_grants.py": "has the calls of functions counted",
    "sql/test_applier_registry.py": "gives functions to somebody who may not create in their schema",
    "sql/test_grants_in_use.py": "makes a schema that a caller owns",
    "sql/test_snapshot_holders.py": "is the DBA: replication, a standby, prepared transactions",
}
_NAMED = re.compile(r'as_superuser\(|\bSUPERUSER\)|user="postgres"|\.administer\(|\bserver\.connect\(')


def _files() -> list[Path]:
    return [path for path in TESTS.rglob("test_*.py") if path.parent.name != "bench"]


def test_every_command_has_a_login() -> None:
    assert sorted(commands_of(cli)) == sorted(roles.LOGIN_OF)


@pytest.mark.parametrize(
    ("line", "login"),
    [
        ("apply --drain", roles.APPLIER),
        ("--schema other keys --held", roles.OPERATOR),
        ("topic create orders", roles.DEPLOYER),
        ("topic grant orders --caller x", roles.OWNER),
        ("append orders apply keys", roles.CALLER),
        ("wait k 1 --topic orders", roles.CALLER),
        ("wait k 1", roles.OPERATOR),
        ("--version", roles.OWNER),
    ],
)
def test_a_command_line_has_its_commands_login(line: str, login: str) -> None:
    owners = f"host=/x user={roles.OWNER} dbname=y"
    assert roles.with_login(owners, *line.split())[0] == owners.replace(roles.OWNER, login)
    others = "host=/x user=somebody dbname=y"
    assert roles.with_login(others, *line.split())[0] == others


def test_no_login_is_a_superuser_and_each_has_its_role_alone(database: Database) -> None:
    rows = database.execute(
        "SELECT rolname::text, rolsuper OR rolcreaterole OR rolbypassrls, ARRAY("
        " SELECT roleid::regrole::text FROM pg_auth_members WHERE member = r.oid"
        # Those of another schema are another test's, on the same server.
        " AND roleid::regrole::text ~ '^(inturn|pg)_' ORDER BY 1)"
        " FROM pg_roles r WHERE rolname = ANY (%s)",
        [[*roles.LOGINS]],
    )
    found = {name: (powers, memberships) for name, powers, memberships in rows}
    del found[roles.OWNER]  # it makes roles
    assert found == {
        roles.CALLER: (False, ["inturn_caller"]),
        roles.APPLIER: (False, ["inturn_applier"]),
        roles.OPERATOR: (False, ["inturn_operator", "pg_signal_backend"]),
        roles.DEPLOYER: (False, ["inturn_admin"]),
        roles.RECEIVER: (False, ["inturn_receiver"]),
        roles.DEMO: (False, []),
    }
    assert database.value("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [roles.OWNER]) is False


def test_what_a_helper_starts_is_the_role(database: Database) -> None:
    """Seen from the server: by its log, as for every test."""
    open_shop(database)
    append(database, "a", "insert")
    assert run_inturn(database.dsn, "status")[0] == 0
    apply_all(database)
    with psycopg.connect(database.caller_dsn) as caller:
        append_in_python(caller, "shop", "a", "insert")
    log = (database.server.directory / "log").read_text()
    seen = set(re.findall(rf"user=(\S+) database={database.name} application_name=(inturn.*)", log))
    assert seen == {(roles.OPERATOR, "inturn"), (roles.APPLIER, "inturn apply")}
    assert database.server.strange_logins() == []


@pytest.mark.parametrize("login", ["postgres", roles.OWNER, roles.OPERATOR])
def test_an_applier_of_somebody_else_is_found(database: Database, login: str) -> None:
    """What fails a test whose helper gives an applier another login than an applier's."""
    open_shop(database, target="sql")
    fleet = Fleet(roles.as_role(database.dsn, login), drain=True)
    with suppress(psycopg.Error):  # who may not apply
        fleet.start()
        fleet.wait(60)
        fleet.end(0)
    found = set(database.server.strange_logins())
    assert found == {f"user={login} database={database.name} application_name=inturn apply"}


def test_a_superuser_that_nobody_named_is_found(database: Database) -> None:
    psycopg.connect(roles.as_role(database.dsn, "postgres")).close()
    assert database.server.strange_logins() == [f"user=postgres database={database.name}"]
    assert run_inturn(roles.as_role(database.dsn, "postgres"), "keys")[0] == 0
    assert database.server.strange_logins() == [
        f"user=postgres database={database.name} application_name=inturn"
    ]
    database.administer("SELECT")
    assert run_inturn(database.as_superuser(), "keys")[0] == 0
    assert database.server.strange_logins() == []


def test_a_connection_says_whose_login_it_is(database: Database) -> None:
    with pytest.raises(TypeError, match="user"):
        database.connect()  # type: ignore[call-arg]


def test_who_names_a_superuser_is_listed_with_what_for() -> None:
    named = {str(path.relative_to(TESTS)) for path in _files() if _NAMED.search(path.read_text("utf-8"))}
    assert named == set(BY_NAME)
