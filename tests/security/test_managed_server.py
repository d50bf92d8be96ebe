"""A server where nobody of ours is superuser, may create roles, or is granted pg_monitor."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from support.database import Database
from support.logins import login
from support.process import run_inturn


@pytest.fixture
def owner(empty_database: Database) -> str:
    """The DSN of a login that owns the database, and may do nothing else."""
    dsn = login(empty_database)
    empty_database.execute(f"ALTER DATABASE {empty_database.name} OWNER TO {conninfo_to_dict(dsn)['user']}")
    (may,) = empty_database.execute(
        "SELECT rolsuper OR rolcreaterole OR pg_has_role(oid, 'pg_monitor', 'MEMBER')"
        " FROM pg_roles WHERE rolname = %s",
        [conninfo_to_dict(dsn)["user"]],
    )
    assert may == (False,)
    return dsn


@pytest.mark.parametrize("more", [(), ("--receiver-only",)], ids=["all", "receiver"])
def test_without_the_roles_it_says_who_makes_them_and_leaves_nothing(
    owner: str, empty_database: Database, more: tuple[str, ...]
) -> None:
    code, _, said = run_inturn(owner, "--schema", "unmade", "upgrade", *more)
    assert code == 1
    assert "may not create roles" in said
    assert f" {' '.join(('inturn --schema unmade upgrade --roles', *more))} | psql;" in said
    code, _, said = run_inturn(owner, "upgrade", "--roles", "--sql", *more)
    assert (code, "not both" in said) == (2, True)
    assert empty_database.value("SELECT to_regnamespace('unmade')") is None


@pytest.mark.parametrize("more", [(), ("--receiver-only",)], ids=["all", "receiver"])
def test_a_dba_runs_the_printed_script_and_the_login_installs(
    owner: str, empty_database: Database, more: tuple[str, ...]
) -> None:
    schema = empty_database.name + "_s"
    named = ("--schema", schema)
    code, script, _ = run_inturn("host=/nowhere", *named, "upgrade", "--roles", *more)
    assert code == 0
    psql = ("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", empty_database.dsn)
    for _ in range(2):  # it may be run again
        empty_database.server.run(*psql, input=script)
    made = empty_database.value("SELECT count(*) FROM pg_roles WHERE starts_with(rolname, %s)", [schema])
    assert made == (1 if more else 4)
    for _ in range(2):
        code, _, said = run_inturn(owner, *named, "upgrade", *more)
        assert code == 0, said
    code, _, said = run_inturn(owner, *named, "downgrade", *more)
    assert code == 0, said


def test_everything_works_and_one_line_says_what_is_hidden(owner: str, empty_database: Database) -> None:
    empty_database.execute(
        "DO $$BEGIN IF to_regrole('inturn_caller') IS NULL THEN CREATE ROLE inturn_caller; END IF;"
        " IF to_regrole('inturn_applier') IS NULL THEN CREATE ROLE inturn_applier; END IF;"
        " IF to_regrole('inturn_operator') IS NULL THEN CREATE ROLE inturn_operator; END IF;"
        " IF to_regrole('inturn_admin') IS NULL THEN CREATE ROLE inturn_admin; END IF; END$$"
    )
    user = conninfo_to_dict(owner)["user"]
    assert run_inturn(owner, "upgrade")[0] == 0
    with psycopg.connect(owner) as connection:
        connection.execute(
            "CREATE SCHEMA app; CREATE FUNCTION app.apply(command inturn.command) RETURNS void"
            " LANGUAGE sql AS 'SELECT'; SELECT inturn.create_topic('orders', 'sql:app.apply')"
        )
    assert run_inturn(owner, "append", "orders", "k", "insert")[0] == 0
    hidden = (
        "inturn: what sessions of other users do is not shown, because the schema's owner may not see it."
        f" A DBA may allow it: GRANT pg_monitor TO {user}\n"
    )
    for command in (("why", "k"), ("status",)):
        code, printed, said = run_inturn(owner, *command)
        assert (code, said) == (0, hidden)
        assert "orders" in printed
    assert run_inturn(owner, "apply", "--drain", "--quiet")[0] == 0
    for command in (("keys",), ("show", "k"), ("verify",), ("status", "--json"), ("pause", "k")):
        code, _, said = run_inturn(owner, *command)
        assert (code, said) == (0, ""), command
    empty_database.administer(f"GRANT pg_monitor TO {user}")
    for command in (("why", "k"), ("status",)):
        assert run_inturn(owner, *command)[2] == ""
    empty_database.administer(f"REVOKE pg_monitor FROM {user}")


def test_the_script_of_the_roles_is_nothing_but_roles(empty_database: Database) -> None:
    for more in ((), ("--receiver-only",)):
        _, script, _ = run_inturn("host=/nowhere", "upgrade", "--roles", *more)
        words = {
            word for word in ("TABLE", "FUNCTION", "GRANT", "SCHEMA", "LOGIN PASSWORD") if word in script
        }
        assert words == set()
        assert "CREATE ROLE" in script


@pytest.mark.parametrize("more", [(), ("--receiver-only",)], ids=["all", "receiver"])
def test_without_the_right_to_create_it_says_who_grants_it_and_that_helps(
    empty_database: Database, more: tuple[str, ...]
) -> None:
    """By either way that it names."""
    dsn, schema = login(empty_database), empty_database.name + "_c"
    user = conninfo_to_dict(dsn)["user"]
    script = run_inturn("host=/nowhere", "--schema", schema, "upgrade", "--roles", *more)[1]
    empty_database.server.run("psql", "-X", "-q", "-d", empty_database.dsn, input=script)
    code, printed, said = run_inturn(dsn, "--schema", schema, "upgrade", *more)
    assert (code, printed) == (1, "")
    grants = (
        f"GRANT CREATE ON DATABASE {empty_database.name} TO {user}",
        f"CREATE SCHEMA {schema} AUTHORIZATION {user}",
    )
    assert said == (
        f"inturn: login {user} may not create schema {schema} in database {empty_database.name}."
        f" Have the database's owner run: {grants[0]}; or: {grants[1]}\n"
    )
    empty_database.execute(f"CREATE SCHEMA {schema}; GRANT USAGE ON SCHEMA {schema} TO {user}")
    code, _, said = run_inturn(dsn, "--schema", schema, "upgrade", *more)
    assert code == 1
    assert f"login {user} may not create anything in schema {schema}" in said
    assert f"ALTER SCHEMA {schema} OWNER TO {user}" in said
    for grant in grants:
        empty_database.administer(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        empty_database.execute(grant)
        code, _, said = run_inturn(dsn, "--schema", schema, "upgrade", *more)
        assert code == 0, said
        assert run_inturn(dsn, "--schema", schema, "downgrade", *more)[0] == 0
        empty_database.execute(f"REVOKE CREATE ON DATABASE {empty_database.name} FROM {user}")
