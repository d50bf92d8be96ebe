"""Installing takes over no schema that is anybody's, and removing takes nothing away that is not ours."""

from __future__ import annotations

import subprocess
from itertools import product

import pytest
from support.database import Database
from support.dump import dump
from support.logins import login
from support.process import run_inturn
from support.roles import OWNER

from inturn.schema.errors import NoPrivilege, SchemaInUse, SchemaNameRefused
from inturn.schema.install import downgrade, upgrade, upgrade_script
from inturn.schema.receiver import downgrade_receiver, receiver_script, upgrade_receiver

#: One of every kind of thing that a schema can hold, and how the refusal names it.
STRANGERS = {
    "CREATE TABLE inturn.theirs (id serial, PRIMARY KEY (id))": "table inturn.theirs",
    "CREATE VIEW inturn.theirs AS SELECT 1": "view inturn.theirs",
    "CREATE SEQUENCE inturn.theirs": "sequence inturn.theirs",
    "CREATE TYPE inturn.theirs AS ENUM ('a')": "type inturn.theirs",
    "CREATE DOMAIN inturn.theirs AS text": "type inturn.theirs",
    "CREATE FUNCTION inturn.append(text) RETURNS text LANGUAGE sql AS 'SELECT $1'": "function inturn.append(",
    "CREATE PROCEDURE inturn.theirs() LANGUAGE sql AS 'SELECT 1'": "procedure inturn.theirs()",
    "CREATE AGGREGATE inturn.theirs(int) (SFUNC = int4pl, STYPE = int)": "aggregate inturn.theirs(integer)",
    "CREATE OPERATOR inturn.=-= (LEFTARG = int, RIGHTARG = int, FUNCTION = int4pl)": "operator inturn.=-=",
    'CREATE COLLATION inturn.theirs FROM "C"': "collation inturn.theirs",
    "CREATE TEXT SEARCH CONFIGURATION inturn.theirs (COPY = simple)": "search configuration inturn.theirs",
    "CREATE TABLE inturn.schema_version (rank integer, script text)": "table inturn.schema_version",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA inturn GRANT SELECT ON TABLES TO PUBLIC": "default acl",
}


def rights(database: Database) -> list[tuple[object, ...]]:
    """Everybody's rights on all schemas and what is in them, and who is there."""
    return database.execute("""
        SELECT n.nspname::text, n.nspacl::text,
            (SELECT array_agg(c.relname::text || c.relacl::text ORDER BY 1)
             FROM pg_class c WHERE c.relnamespace = n.oid),
            (SELECT array_agg(rolname::text ORDER BY 1) FROM pg_roles WHERE rolname !~ '^test_')
        FROM pg_namespace n WHERE n.nspname !~ '^pg_(toast_)?temp' ORDER BY 1""")


def refused_by_psql(database: Database, script: str) -> str:
    """Run a script that has to fail, and return what psql said."""
    psql = ("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.dsn)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        database.server.run(*psql, input=script)
    return str(refused.value.stderr)


#: Schemas of everybody, or of PostgreSQL.
OF_EVERYBODY = (
    *("public", "information_schema", "pg_catalog", "pg_toast"),
    *("pg_temp", "pg_temp_1", "pg_toast_temp_3"),
)


def test_no_schema_of_everybody_is_taken_over(empty_database: Database) -> None:
    before = rights(empty_database)
    for schema in OF_EVERYBODY:
        for command, more in product(("upgrade", "downgrade"), ((), ("--receiver-only",))):
            code, _, said = run_inturn(empty_database.dsn, "--schema", schema, command, *more)
            assert code != 0
            assert repr(schema) in said
            assert "schema of its own" in said
            assert "Traceback" not in said
        for refuse in (upgrade_script, receiver_script):
            with pytest.raises(SchemaNameRefused, match=schema):
                refuse(schema=schema)
    assert rights(empty_database) == before


def test_a_schema_that_holds_something_is_refused_before_anything_is_touched(
    empty_database: Database,
) -> None:
    scripts = (upgrade_script(), receiver_script())
    for theirs, named in STRANGERS.items():
        empty_database.execute("CREATE SCHEMA inturn; GRANT USAGE ON SCHEMA inturn TO PUBLIC")
        empty_database.execute(theirs)
        before = rights(empty_database), dump(empty_database)
        for install in (upgrade, upgrade_receiver):
            with pytest.raises(SchemaInUse) as refused:
                install(empty_database.dsn)
            assert named in refused.value.message
            assert "--schema" in refused.value.hint
        for script in scripts:
            said = refused_by_psql(empty_database, script)
            assert "is not inturn's alone" in said
            assert named in said
        assert (rights(empty_database), dump(empty_database)) == before
        empty_database.execute("DROP SCHEMA inturn CASCADE")


def test_the_first_strangers_are_named_and_the_others_counted(empty_database: Database) -> None:
    empty_database.execute("CREATE SCHEMA inturn")
    for n in range(5):
        empty_database.execute(f"CREATE TABLE inturn.t{n} ()")
    with pytest.raises(SchemaInUse, match=r"inturn\.t0, table inturn\.t1, table inturn\.t2 and 2 more"):
        upgrade(empty_database.dsn)


@pytest.mark.parametrize("given", ["OWNER", "CREATE", "PUBLIC"])
def test_a_schema_that_somebody_else_planted_is_refused(empty_database: Database, given: str) -> None:
    login(empty_database)
    planter = empty_database.name
    empty_database.execute(
        f"""CREATE SCHEMA inturn {"AUTHORIZATION " + planter if given == "OWNER" else ""}"""
    )
    if given != "OWNER":
        empty_database.execute(
            f"GRANT CREATE ON SCHEMA inturn TO {'PUBLIC' if given == 'PUBLIC' else planter}"
        )
    who = "PUBLIC" if given == "PUBLIC" else planter
    if given == "OWNER":
        for install in (upgrade, upgrade_receiver):
            with pytest.raises(NoPrivilege, match="may not create anything in schema inturn"):
                install(empty_database.dsn)
        empty_database.dsn = empty_database.as_superuser()  # who may
    for install in (upgrade, upgrade_receiver):
        with pytest.raises(SchemaInUse, match=rf"{who}, who (owns it|may create in it)"):
            install(empty_database.dsn)
    said = refused_by_psql(empty_database, upgrade_script())
    assert who in said
    assert empty_database.execute("SELECT FROM pg_class WHERE relname = 'topic'") == []
    empty_database.administer(
        f"ALTER SCHEMA inturn OWNER TO {OWNER}; REVOKE CREATE ON SCHEMA inturn FROM {who}"
    )
    upgrade(empty_database.dsn)


def test_a_schema_that_a_dba_made_for_the_login_is_taken(
    empty_database: Database, database: Database
) -> None:
    dsn = login(empty_database)  # `database` has made the cluster's roles
    empty_database.execute(f"CREATE SCHEMA inturn AUTHORIZATION {empty_database.name}")
    upgrade(dsn)
    assert empty_database.execute("SELECT FROM pg_class WHERE relname = 'topic'")


def test_a_script_that_is_run_again_says_that_it_was(empty_database: Database) -> None:
    upgrade(empty_database.dsn)
    assert "installed already" in refused_by_psql(empty_database, upgrade_script())


def test_the_schema_and_the_guard_lie_beside_each_other(empty_database: Database) -> None:
    upgrade(empty_database.dsn)
    empty_database.server.run("psql", "-X", "-q", "-d", empty_database.dsn, input=receiver_script())
    downgrade(empty_database.dsn)
    empty_database.server.run("psql", "-X", "-q", "-d", empty_database.dsn, input=upgrade_script())
    downgrade_receiver(empty_database.dsn)
    downgrade(empty_database.dsn)
    assert empty_database.value("SELECT to_regnamespace('inturn')") is None


#: What is in a schema of ours and not ours, and how the refusal names it.
GUESTS = [
    ("TABLE inturn.theirs", "(id integer)", r"table inturn\.theirs"),
    (
        "FUNCTION inturn.append(text)",
        "RETURNS int LANGUAGE sql AS 'SELECT 1'",
        r"append\(pg_catalog\.text\)",
    ),
    ("FUNCTION inturn.turn()", "RETURNS int LANGUAGE sql AS 'SELECT 1'", r"inturn\.turn\(\)"),
    ("PROCEDURE inturn.skip()", "LANGUAGE sql AS 'SELECT 1'", r"procedure inturn\.skip\(\)"),
    ("TYPE inturn.verify", "AS ENUM ('a')", r"type inturn\.verify"),
]


def test_removing_takes_nothing_that_is_not_ours(database: Database) -> None:
    for theirs, what, named in GUESTS:
        database.execute(f"CREATE {theirs} {what}")
        before = dump(database)
        for force in (False, True):
            with pytest.raises(SchemaInUse, match=named):
                downgrade(database.dsn, force=force)
        assert dump(database) == before
        database.execute(f"DROP {theirs}")


def test_what_has_the_name_of_something_of_ours_does_not_go_beside_the_guard_either(
    database: Database,
) -> None:
    upgrade_receiver(database.dsn)
    database.execute("CREATE FUNCTION inturn.append(text) RETURNS int LANGUAGE sql AS 'SELECT 1'")
    with pytest.raises(SchemaInUse, match=r"append\(pg_catalog\.text\)"):
        downgrade(database.dsn)
    assert database.value("SELECT inturn.append('x')") == 1


def test_removing_the_guard_takes_nothing_that_is_not_ours(empty_database: Database) -> None:
    upgrade_receiver(empty_database.dsn)
    empty_database.execute("CREATE TABLE inturn.theirs (id integer)")
    with pytest.raises(SchemaInUse, match=r"table inturn\.theirs"):
        downgrade_receiver(empty_database.dsn)
    assert empty_database.value("SELECT inturn.accept('t', 'k', 1, 1)") is True
