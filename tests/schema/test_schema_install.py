"""Installing: any number of times, at once, under any name, by SQL script, without superuser."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest
import sqlalchemy.exc
from psycopg.conninfo import make_conninfo
from support.database import Database, set_revision
from support.dump import dump
from support.installers import upgrade_at_once
from support.logins import login
from support.process import run_inturn
from support.roles import OWNER
from support.server import Server

from inturn.schema.errors import SchemaInUse, SchemaMismatch, SchemaNameRefused
from inturn.schema.install import downgrade, upgrade, upgrade_script
from inturn.schema.receiver import upgrade_receiver
from inturn.schema.version import HEAD


def roles_of(database: Database, schema: str) -> list[str]:
    rows = database.execute(
        "SELECT rolname::text FROM pg_roles WHERE starts_with(rolname, %s) ORDER BY 1",
        [f"{schema}_"],
    )
    return [row[0] for row in rows]


@pytest.fixture
def four_databases(server: Server) -> Iterator[list[Database]]:
    databases = [Database(server, f"neighbour_{n}") for n in range(4)]
    yield databases
    for database in databases:
        database.drop()


def test_upgrade_says_what_was_there_and_what_is_now(empty_database: Database) -> None:
    assert upgrade(empty_database.dsn) == (None, HEAD)
    before = dump(empty_database)
    assert upgrade(empty_database.dsn) == (HEAD, HEAD)
    assert upgrade(empty_database.dsn) == (HEAD, HEAD)
    assert dump(empty_database) == before


def test_the_tables_that_a_prune_or_a_turn_deletes_from_are_vacuumed_as_was_measured(
    database: Database,
) -> None:
    """See docs/reference/benchmarks.md."""
    assert database.execute("""
        SELECT c.relname::text, o.option_value FROM pg_class c
        CROSS JOIN LATERAL pg_options_to_table(c.reloptions) o
        WHERE c.relnamespace = 'inturn'::regnamespace AND starts_with(o.option_name, 'autovacuum') ORDER BY 1
    """) == [("command_log", "0.05"), ("ticket", "0.05"), ("turn", "0.05")]


def test_no_index_is_in_an_order_that_a_new_release_of_the_system_may_change(database: Database) -> None:
    """Of glibc or ICU, after which PostgreSQL warns of a collation version mismatch."""
    upgrade_receiver(database.owner_dsn)
    collations = database.execute("""
        SELECT DISTINCT c.collname::text FROM pg_index i
        JOIN pg_class t ON t.oid = i.indrelid AND t.relnamespace = 'inturn'::regnamespace
        CROSS JOIN unnest(i.indcollation) o (oid) JOIN pg_collation c ON c.oid = o.oid ORDER BY 1
    """)
    assert collations == [("C",), ("POSIX",)]


def test_upgrade_again_keeps_topics_and_commands(witness: Database) -> None:
    witness.execute("SELECT inturn.append('orders', 'a', 'insert')")
    upgrade(witness.dsn)
    assert witness.value("SELECT inturn.append('orders', 'a', 'delete')") == 2


def test_eight_processes_install_one_database_at_once(database: Database, empty_database: Database) -> None:
    upgrade_at_once([empty_database.dsn] * 8, schema="inturn")
    assert dump(empty_database) == dump(database)
    assert empty_database.execute("SELECT version_num FROM inturn.schema_version") == [(HEAD,)]


def test_installs_into_several_databases_at_once_share_the_roles_that_none_had(
    four_databases: list[Database],
) -> None:
    upgrade_at_once([database.dsn for database in four_databases] * 2, schema="neighbours")
    assert len({dump(database, "neighbours") for database in four_databases}) == 1
    assert roles_of(four_databases[0], "neighbours") == [
        "neighbours_admin",
        "neighbours_applier",
        "neighbours_caller",
        "neighbours_operator",
    ]


def test_eight_threads_install_one_database_at_once(empty_database: Database) -> None:
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(upgrade, [empty_database.dsn] * 8))
    assert sorted(outcomes, key=str) == [(HEAD, HEAD)] * 7 + [(None, HEAD)]


def test_threads_of_one_process_install_into_several_databases_at_once(
    four_databases: list[Database],
) -> None:
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(upgrade, [database.dsn for database in four_databases] * 2))
    assert sorted(outcomes, key=str) == [(HEAD, HEAD)] * 4 + [(None, HEAD)] * 4


def test_another_schema_name_works_when_the_default_one_is_gone(database: Database) -> None:
    upgrade(database.dsn, schema="side_by_side")
    downgrade(database.dsn)
    assert database.value("SELECT to_regnamespace('inturn')") is None
    database.execute("""
        CREATE TABLE public.witness (key text, seq bigint);
        CREATE FUNCTION public.handle(command side_by_side.command) RETURNS void LANGUAGE sql
        AS 'INSERT INTO public.witness VALUES (command.key, command.seq)';
        SELECT side_by_side.create_topic('orders', 'sql:public.handle');
        SELECT side_by_side.append('orders', 'a', 'insert');
        SELECT side_by_side.append_many('orders', '{a,b}', '{update,insert}');
        INSERT INTO side_by_side.outbox (topic, key, name) VALUES ('orders', 'b', 'delete');
    """)
    assert database.value("SELECT side_by_side.pending_commands('{orders}')") == 4
    database.execute("SELECT side_by_side.announce_sleep('{orders}')")
    assert database.value("SELECT side_by_side.next_ready('{orders}', '-infinity')") is not None
    database.execute("CALL side_by_side.apply()")
    assert database.execute("SELECT key, seq FROM public.witness ORDER BY key, seq") == [
        ("a", 1),
        ("a", 2),
        ("b", 1),
        ("b", 2),
    ]
    assert database.execute("SELECT key, state FROM side_by_side.list_keys()") == [
        ("a", "idle"),
        ("b", "idle"),
    ]
    upgrade(database.dsn)  # the default one beside it again


def test_nothing_in_another_schema_mentions_the_default_one(empty_database: Database) -> None:
    upgrade(empty_database.dsn, schema="elsewhere")
    found = empty_database.execute(r"""
        SELECT what, text FROM (
            SELECT p.oid::regprocedure::text, pg_get_functiondef(p.oid) FROM pg_proc p
            WHERE p.pronamespace = 'elsewhere'::regnamespace
            UNION ALL
            SELECT c.oid::regclass::text, pg_get_viewdef(c.oid) FROM pg_class c
            WHERE c.relnamespace = 'elsewhere'::regnamespace AND c.relkind = 'v'
            UNION ALL
            SELECT d.objoid::text, d.description FROM pg_description d WHERE d.objoid >= 16384
            UNION ALL
            SELECT o.oid::text, pg_get_constraintdef(o.oid) FROM pg_constraint o
            WHERE o.connamespace = 'elsewhere'::regnamespace
            UNION ALL
            SELECT t.oid::text, pg_get_triggerdef(t.oid) FROM pg_trigger t WHERE NOT t.tgisinternal
            UNION ALL
            SELECT c.oid::regclass::text, c.relacl::text FROM pg_class c
            WHERE c.relnamespace = 'elsewhere'::regnamespace
        ) AS everything (what, text)
        WHERE text ~ '\minturn(\.|_(caller|applier|operator)\M)'
    """)
    assert found == []
    assert "inturn." not in dump(empty_database, "elsewhere")


def test_a_name_that_contains_the_default_one_is_taken_as_it_is(empty_database: Database) -> None:
    upgrade(empty_database.dsn, schema="inturn_inturn")
    empty_database.execute("SELECT inturn_inturn.create_topic('orders')")
    assert empty_database.value("SELECT inturn_inturn.append('orders', 'a', 'insert')") == 1
    assert empty_database.value("SELECT to_regnamespace('inturn')") is None


NEEDS_QUOTING = [
    'in"turn',
    "in'turn",
    "in turn",
    "inturn;",
    "inturn.x",
    "In",
    "intürn",
    "1nturn",
    "",
    "inturn\n",
    "pg_inturn",
    "x" * 41,
    "%s",
    "$1",
    "{}",
]


def test_a_schema_name_that_would_need_quoting_is_refused_by_name(empty_database: Database) -> None:
    for schema in NEEDS_QUOTING:
        for refuse in (
            partial(upgrade, empty_database.dsn),
            partial(downgrade, empty_database.dsn),
            upgrade_script,
        ):
            with pytest.raises(SchemaNameRefused) as refused:
                refuse(schema=schema)
            assert repr(schema) in refused.value.message
            assert "1 to 40" in refused.value.hint


def test_a_reserved_word_is_refused_by_name_and_leaves_nothing(empty_database: Database) -> None:
    for schema in ("user", "select", "table", "between"):
        with pytest.raises(SchemaNameRefused, match=f"'{schema}' is a reserved word"):
            upgrade(empty_database.dsn, schema=schema)
        assert roles_of(empty_database, schema) == []


def test_the_longest_name_fits_with_its_roles(empty_database: Database) -> None:
    schema = "x" * 40
    upgrade(empty_database.dsn, schema=schema)
    assert roles_of(empty_database, schema) == [
        f"{schema}_admin",
        f"{schema}_applier",
        f"{schema}_caller",
        f"{schema}_operator",
    ]


@pytest.mark.parametrize("schema", ["inturn", "by_script"])
def test_the_script_run_by_psql_installs_the_same(
    empty_database: Database, server: Server, schema: str
) -> None:
    script = upgrade_script(schema=schema)
    psql = ("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", empty_database.dsn)
    server.run(*psql, input=script)
    by_script = dump(empty_database, schema)
    assert upgrade(empty_database.dsn, schema=schema) == (HEAD, HEAD)
    downgrade(empty_database.dsn, schema=schema)
    upgrade(empty_database.dsn, schema=schema)
    assert by_script == dump(empty_database, schema)


def test_the_script_run_twice_changes_nothing_the_second_time(
    empty_database: Database, server: Server
) -> None:
    script = upgrade_script()
    server.run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", empty_database.dsn, input=script)
    before = dump(empty_database)
    # Without ON_ERROR_STOP, as a hasty DBA runs it: the script's own transaction protects it.
    server.run("psql", "-X", "-q", "-d", empty_database.dsn, input=script)
    assert dump(empty_database) == before
    assert empty_database.execute("SELECT version_num FROM inturn.schema_version") == [(HEAD,)]


def test_the_script_from_head_changes_nothing(database: Database, server: Server) -> None:
    before = dump(database)
    script = upgrade_script(from_revision=HEAD)
    server.run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.dsn, input=script)
    assert dump(database) == before


def test_a_newer_schema_is_left_alone(database: Database) -> None:
    set_revision(database, "9999")
    before = dump(database)
    with pytest.raises(SchemaMismatch, match="revision 9999, newer than") as refused:
        upgrade(database.dsn)
    assert "pip install --upgrade inturn" in refused.value.hint
    assert dump(database) == before
    assert database.value("SELECT version_num FROM inturn.schema_version") == "9999"


def test_a_login_that_may_not_create_roles_fails_clearly_and_leaves_nothing(
    empty_database: Database,
) -> None:
    dsn = login(empty_database)
    empty_database.execute(f"GRANT CREATE ON DATABASE {empty_database.name} TO {empty_database.name}")
    with pytest.raises((psycopg.Error, sqlalchemy.exc.DBAPIError), match="permission denied to create role"):
        upgrade(dsn, schema="unprivileged")
    assert empty_database.value("SELECT to_regnamespace('unprivileged')") is None


def test_a_login_that_may_not_create_roles_installs_where_they_exist(
    database: Database, empty_database: Database
) -> None:
    # `database` has made the cluster's roles; a DBA would have.
    dsn = login(empty_database)
    empty_database.execute(f"GRANT CREATE ON DATABASE {empty_database.name} TO {empty_database.name}")
    assert upgrade(dsn) == (None, HEAD)
    assert upgrade(dsn) == (HEAD, HEAD)
    owned = dump(empty_database).replace(f"TO {empty_database.name};", f"TO {OWNER};")
    owned = owned.replace(f"Owner: {empty_database.name}", f"Owner: {OWNER}")
    assert owned == dump(database)
    with psycopg.connect(dsn) as owner:
        owner.execute("SELECT inturn.create_topic('orders')")
        assert owner.execute("SELECT inturn.append('orders', 'a', 'insert')").fetchone() == (1,)
    downgrade(dsn, force=True)


def test_a_database_that_refuses_raises_the_drivers_error(empty_database: Database) -> None:
    read_only = f"{empty_database.dsn} options='-c default_transaction_read_only=on'"
    for dsn in ("host=/nowhere", "not a dsn", read_only):
        with pytest.raises(psycopg.Error):
            upgrade(dsn)


SETTINGS = (
    "default_transaction_isolation=serializable",
    "search_path=",
    "standard_conforming_strings=off",
    "client_encoding=latin1",
    "check_function_bodies=on",
    "statement_timeout=60000",
    "plpgsql.extra_errors=all",
)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(SETTINGS, id="all"),
        *(pytest.param((each,), id=each, marks=pytest.mark.rest) for each in SETTINGS),
    ],
)
def test_settings_of_the_login_change_nothing(
    database: Database, empty_database: Database, options: tuple[str, ...]
) -> None:
    upgrade(make_conninfo(empty_database.dsn, options=" ".join(f"-c {each}" for each in options)))
    assert dump(empty_database) == dump(database)


def test_behind_a_pooler_a_setting_of_the_login_changes_nothing(
    database: Database, empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There nothing is set that would stay behind in a session of others."""
    # A pooler tells of another backend.
    monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", property(lambda _: 0))
    dsn = make_conninfo(
        empty_database.dsn, options="-c quote_all_identifiers=on -c search_path=inturn,public"
    )
    for _ in range(2):
        upgrade(dsn)
    assert dump(empty_database) == dump(database)
    downgrade(dsn)
    assert empty_database.value("SELECT to_regnamespace('inturn')") is None


def test_a_failed_installation_leaves_nothing(empty_database: Database) -> None:
    empty_database.execute("CREATE SCHEMA inturn; CREATE TABLE inturn.turn (theirs text)")
    with pytest.raises(SchemaInUse, match=r"table inturn\.turn"):
        upgrade(empty_database.dsn)
    assert empty_database.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'inturn'::regnamespace"
    ) == [("turn",)]


def test_where_a_trigger_of_others_relies_on_the_search_path_it_is_named_with_what_to_do(
    empty_database: Database,
) -> None:
    """A trigger on DDL, which runs at an upgrade; and one on a table, which runs at an append."""
    empty_database.administer("""
        CREATE SCHEMA audit; GRANT USAGE ON SCHEMA audit TO PUBLIC;
        CREATE TABLE audit.seen (tag text); GRANT ALL ON audit.seen TO PUBLIC;
        CREATE FUNCTION audit.note_ddl() RETURNS event_trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO seen VALUES (tg_tag); END';
        CREATE FUNCTION audit.note_row() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO seen VALUES (tg_op); RETURN NEW; END';
        CREATE EVENT TRIGGER note ON ddl_command_end EXECUTE FUNCTION audit.note_ddl();
    """)

    def refused(function: str, *arguments: str) -> bool:
        code, _, said = run_inturn(empty_database.dsn, *arguments)
        assert code == 0 or f'relation "seen" does not exist. The function {function}, which' in said, said
        empty_database.administer(f"ALTER FUNCTION {function} SET search_path TO audit")
        return code != 0

    assert refused("audit.note_ddl()", "upgrade")
    assert not refused("audit.note_ddl()", "upgrade")
    empty_database.execute("SELECT inturn.create_topic('orders')")
    empty_database.administer(
        "CREATE TRIGGER note AFTER INSERT ON inturn.command_log"
        " FOR EACH ROW EXECUTE FUNCTION audit.note_row()"
    )
    append = ("append", "orders", "k", "insert")
    assert refused("audit.note_row()", *append)
    assert not refused("audit.note_row()", *append)
    assert empty_database.value("SELECT count(*) > 100 FROM audit.seen")
