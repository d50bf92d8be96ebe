"""accept, the guard of a receiver's own database: its answers, its locks, how it comes and goes."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from support.database import Database, Session
from support.dump import dump
from support.installers import upgrade_at_once
from support.logins import connect_as, login
from support.process import run_inturn
from support.race import unblocked
from support.refusal import refusal
from support.server import Server

from inturn.schema import locks
from inturn.schema.errors import SchemaInUse, SchemaMismatch, SchemaNameRefused
from inturn.schema.install import downgrade, upgrade
from inturn.schema.receiver import HEAD, downgrade_receiver, receiver_script, upgrade_receiver

ACCEPT = "SELECT inturn.accept('orders', %s, %s, %s)"


@pytest.fixture
def receiver(empty_database: Database) -> Database:
    """A database with the guard, and a table for effects."""
    upgrade_receiver(empty_database.dsn)
    empty_database.execute("CREATE TABLE effect (id bigserial, key text, seq bigint)")
    return empty_database


def accept(session: Session | Database, seq: int, epoch: int = 1, key: str = "x") -> Any:
    return session.execute(ACCEPT, [key, seq, epoch])[0][0]


def last(database: Database) -> list[tuple[Any, ...]]:
    return database.execute("SELECT key, seq, epoch FROM inturn.accepted ORDER BY key")


# What it answers.


def test_true_once_a_number_and_only_in_order(receiver: Database) -> None:
    assert [accept(receiver, seq) for seq in (1, 1, 2, 1, 2, 3, 3)] == [
        True,
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    assert last(receiver) == [("x", 3, 1)]


def test_what_an_operator_skipped_never_comes_and_holds_up_nothing(receiver: Database) -> None:
    assert [accept(receiver, seq) for seq in (4, 7, 5, 6, 8)] == [True, True, False, False, True]


def test_keys_and_topics_are_told_apart_by_every_byte(receiver: Database) -> None:
    for key in ("x", "X", "x ", "ẋ"):
        assert accept(receiver, 1, key=key)
    assert receiver.value("SELECT inturn.accept('bills', 'x', 1, 1)")
    assert len(last(receiver)) == 5


def test_nothing_of_an_earlier_turn_is_accepted_after_a_later_one(receiver: Database) -> None:
    assert accept(receiver, 1, epoch=1)
    assert accept(receiver, 2, epoch=3)
    assert not accept(receiver, 3, epoch=2), "the late request of an applier that was fenced off"
    assert accept(receiver, 3, epoch=3)
    assert last(receiver) == [("x", 3, 3)]


def test_a_repeat_changes_nothing_whatever_its_epoch(receiver: Database) -> None:
    assert accept(receiver, 5, epoch=2)
    before = receiver.execute("SELECT * FROM inturn.accepted")
    for seq, epoch in ((5, 2), (5, 9**18), (1, 9**18), (5, 1)):
        assert not accept(receiver, seq, epoch=epoch)
    assert receiver.execute("SELECT * FROM inturn.accepted") == before
    assert accept(receiver, 6, epoch=2)


def test_a_part_that_is_missing_is_refused_and_no_answer(receiver: Database) -> None:
    accept(receiver, 1)
    for place in (
        "NULL, 'x', 2, 1",
        "'orders', NULL, 2, 1",
        "'orders', 'x', NULL, 1",
        "'orders', 'x', 2, NULL",
    ):
        assert refusal(receiver, f"SELECT inturn.accept({place})").sqlstate == "23502", place


# In the transaction of the effect.


def test_without_its_effect_nothing_was_accepted(receiver: Database) -> None:
    session = receiver.session()
    assert accept(session, 1)
    session.rollback()
    assert last(receiver) == []
    assert accept(session, 1)
    session.commit()
    session.execute("SAVEPOINT before")
    assert accept(session, 2)
    session.execute("ROLLBACK TO before")
    assert accept(session, 2)
    session.commit()
    assert last(receiver) == [("x", 2, 1)]


@pytest.mark.parametrize("known", [False, True], ids=["first of its key", "later"])
@pytest.mark.parametrize("commits", [True, False], ids=["commit", "rollback"])
def test_two_at_once_the_second_waits_and_gets_the_right_answer(
    receiver: Database, known: bool, commits: bool
) -> None:
    seq = 2 if known else 1
    if known:
        accept(receiver, 1)
    one, two = receiver.session(), receiver.session()
    assert accept(one, seq)
    waiting = two.begin(ACCEPT, ["x", seq, 2])
    assert two.wait_blocked() == [one.pid]
    (one.commit if commits else one.rollback)()
    assert waiting.result() == [(not commits,)]
    two.commit()
    assert last(receiver) == [("x", seq, 1 if commits else 2)]


@pytest.mark.parametrize("known", [False, True], ids=["first of its key", "later"])
@pytest.mark.parametrize("commits", [True, False], ids=["commit", "rollback"])
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_an_older_snapshot_gets_the_right_answer_or_40001(
    receiver: Database, known: bool, commits: bool, level: str
) -> None:
    seq = 2 if known else 1
    if known:
        accept(receiver, 1)
    one, two = receiver.session(), receiver.session()
    two.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
    two.execute("SELECT FROM inturn.accepted")
    assert accept(one, seq)
    waiting = two.begin(ACCEPT, ["x", seq, 1])
    assert two.wait_blocked() == [one.pid]
    (one.commit if commits else one.rollback)()
    if commits:
        assert getattr(waiting.exception(), "sqlstate", None) == "40001"
        two.rollback()
        assert not accept(two, seq)
    else:
        assert waiting.result() == [(True,)]
    two.commit()
    assert last(receiver) == [("x", seq, 1)]


def test_a_refused_one_keeps_the_next_waiting_until_its_transaction_ends(receiver: Database) -> None:
    """It has been answered by what is committed: nobody changes that under its hands."""
    accept(receiver, 1)
    one, two = receiver.session(), receiver.session()
    assert not accept(one, 1)
    waiting = two.begin(ACCEPT, ["x", 2, 1])
    assert two.wait_blocked() == [one.pid]
    one.commit()
    assert waiting.result() == [(True,)]


def test_other_keys_wait_for_nobody(receiver: Database) -> None:
    one, two = receiver.session(), receiver.session()
    accept(one, 1)
    assert unblocked(receiver, two, ACCEPT, ["y", 1, 1]) == [(True,)]


# Who may.


def test_the_role_may_accept_and_nothing_else(receiver: Database) -> None:
    with connect_as(receiver, "inturn_receiver") as session:
        assert session.execute(ACCEPT, ["x", 1, 1]).fetchone() == (True,)
        for attempt in (
            "SELECT FROM inturn.accepted",
            "UPDATE inturn.accepted SET seq = 0",
            "DELETE FROM inturn.accepted",
            "INSERT INTO inturn.accepted VALUES ('orders', 'y', 1, 1)",
            "TRUNCATE inturn.accepted",
            "SELECT FROM inturn.receiver_version",
            "CREATE TABLE inturn.mine ()",
        ):
            assert refusal(session, attempt).sqlstate == "42501", attempt
    nobody = connect_as(receiver)
    assert refusal(nobody, "SELECT inturn.accept('orders', 'x', 1, 1)").sqlstate == "42501"


def test_public_has_nothing_also_where_it_is_given_everything_by_default(empty_database: Database) -> None:
    empty_database.execute("""
        ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON ROUTINES TO PUBLIC;
    """)
    upgrade_receiver(empty_database.dsn)
    granted = """
        SELECT what, grantee::regrole::text FROM (
            SELECT oid::regprocedure::text, proowner, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc
            WHERE pronamespace = 'inturn'::regnamespace
            UNION ALL
            SELECT oid::regclass::text, relowner, coalesce(relacl, acldefault('r', relowner)) FROM pg_class
            WHERE relnamespace = 'inturn'::regnamespace AND relkind = 'r'
            UNION ALL
            SELECT nspname, nspowner, coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace
            WHERE nspname = 'inturn'
        ) AS everything (what, owner, acl), aclexplode(acl) WHERE grantee <> owner ORDER BY 1
    """
    assert empty_database.execute(granted) == [
        ("inturn", "inturn_receiver"),
        ("inturn.accept(text,text,bigint,bigint)", "inturn_receiver"),
    ]


def test_the_role_cannot_log_in_and_has_no_other(receiver: Database) -> None:
    assert receiver.execute(
        "SELECT rolsuper, rolcanlogin, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication,"
        " EXISTS (SELECT FROM pg_auth_members WHERE member = r.oid)"
        " FROM pg_roles r WHERE rolname = 'inturn_receiver'"
    ) == [(False,) * 7]


def test_what_a_login_puts_into_its_own_schemas_captures_nothing(receiver: Database) -> None:
    assert receiver.execute("SELECT prosecdef, proconfig FROM pg_proc WHERE proname = 'accept'") == [
        (True, ["search_path=pg_catalog, pg_temp"])
    ]
    with connect_as(receiver, "inturn_receiver") as session:
        session.execute("""
            CREATE TEMP TABLE accepted (topic text, key text, seq bigint, epoch bigint);
            CREATE FUNCTION pg_temp.over(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT true';
            CREATE OPERATOR pg_temp.> (FUNCTION = pg_temp.over, LEFTARG = bigint, RIGHTARG = bigint);
            SET search_path = pg_temp, inturn, pg_catalog;
        """)
        answers = [session.execute(ACCEPT, ["x", seq, 1]).fetchone() for seq in (1, 1, 2)]
        assert answers == [(True,), (False,), (True,)]
        assert session.execute("SELECT FROM pg_temp.accepted").rowcount == 0


# How it comes and goes.


def test_it_installs_by_itself_with_one_table_and_its_version(receiver: Database) -> None:
    assert upgrade_receiver(receiver.dsn) == (HEAD, HEAD)
    assert receiver.execute(
        "SELECT relname FROM pg_class"
        " WHERE relnamespace = 'inturn'::regnamespace AND relkind <> 'i' ORDER BY 1"
    ) == [("accepted",), ("receiver_version",)]
    assert receiver.execute("SELECT version_num FROM inturn.receiver_version") == [(HEAD,)]


def test_another_schema_name_works_and_mentions_the_default_one_nowhere(empty_database: Database) -> None:
    assert upgrade_receiver(empty_database.dsn, schema="elsewhere") == (None, HEAD)
    assert empty_database.value("SELECT elsewhere.accept('orders', 'x', 1, 1)")
    assert "inturn" not in dump(empty_database, "elsewhere")
    downgrade_receiver(empty_database.dsn, schema="elsewhere", force=True)
    assert empty_database.value("SELECT to_regnamespace('elsewhere')") is None


def test_eight_at_once_install_it_once(receiver: Database, server: Server) -> None:
    other = Database(server, f"{receiver.name}_other")
    try:
        upgrade_at_once([other.dsn] * 8, schema="inturn", receiver=True)
        assert dump(other) == dump(receiver)
    finally:
        other.drop()


def test_installs_into_several_databases_at_once_share_the_role_that_none_had(
    receiver: Database, server: Server
) -> None:
    others = [Database(server, f"{receiver.name}_{n}") for n in range(4)]
    try:
        upgrade_at_once([other.dsn for other in others] * 2, schema="strangers", receiver=True)
        assert len({dump(other, "strangers") for other in others}) == 1
    finally:
        for other in others:
            other.drop()


@pytest.mark.parametrize("schema", ["inturn", "by_script"])
def test_the_script_run_by_psql_installs_the_same_once(
    empty_database: Database, server: Server, schema: str
) -> None:
    psql = ("psql", "-X", "-q", "-d", empty_database.dsn)
    script = receiver_script(schema=schema)
    server.run(*psql, "-v", "ON_ERROR_STOP=1", input=script)
    by_script = dump(empty_database, schema)
    empty_database.execute(f"SELECT {schema}.accept('orders', 'x', 1, 1)")
    server.run(*psql, input=script)
    assert dump(empty_database, schema) == by_script
    assert not empty_database.value(f"SELECT {schema}.accept('orders', 'x', 1, 1)")
    assert upgrade_receiver(empty_database.dsn, schema=schema) == (HEAD, HEAD)
    downgrade_receiver(empty_database.dsn, schema=schema, force=True)
    upgrade_receiver(empty_database.dsn, schema=schema)
    assert by_script == dump(empty_database, schema)


def test_a_login_that_may_not_create_roles_installs_where_it_exists(
    receiver: Database, server: Server
) -> None:
    other = Database(server, f"{receiver.name}_other")
    try:
        dsn = login(other)
        other.execute(f"GRANT CREATE ON DATABASE {other.name} TO {other.name}")
        assert upgrade_receiver(dsn) == (None, HEAD)
    finally:
        other.drop()


@pytest.mark.parametrize("schema", ["In", "user", "pg_x", "a b"])
def test_a_name_that_would_need_quoting_is_refused(empty_database: Database, schema: str) -> None:
    for refuse in (upgrade_receiver, downgrade_receiver):
        with pytest.raises(SchemaNameRefused):
            refuse(empty_database.dsn, schema=schema)


def test_a_newer_one_is_left_alone(receiver: Database) -> None:
    receiver.execute("CREATE OR REPLACE VIEW inturn.receiver_version AS SELECT '9999'::text AS version_num")
    for refuse in (upgrade_receiver, downgrade_receiver):
        with pytest.raises(SchemaMismatch, match="revision 9999, newer than"):
            refuse(receiver.dsn)
    assert accept(receiver, 1)


def test_it_is_not_removed_while_it_knows_something_unless_forced(receiver: Database) -> None:
    accept(receiver, 1)
    with pytest.raises(SchemaInUse, match="takes effect again") as refused:
        downgrade_receiver(receiver.dsn)
    assert "--force" in refused.value.hint
    assert not accept(receiver, 1)
    downgrade_receiver(receiver.dsn, force=True)
    assert receiver.value("SELECT to_regnamespace('inturn')") is None
    with pytest.raises(SchemaMismatch, match="no receiver is installed"):
        downgrade_receiver(receiver.dsn)


@pytest.mark.parametrize("deadlock_timeout", ["1s", "1ms"])
def test_a_removal_that_has_to_wait_gives_up_and_holds_no_receiver_up(
    receiver: Database, deadlock_timeout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    other = receiver.session()
    other.execute(ACCEPT, ["x", 1, 1])
    with pytest.raises(SchemaInUse, match=rf"not removed: .* the longest by backend {other.pid}"):
        downgrade_receiver(f"{receiver.dsn} options='-c deadlock_timeout={deadlock_timeout}'", force=True)


@pytest.mark.parametrize("first", ["schema", "receiver"])
def test_beside_the_schema_each_comes_and_goes_by_itself(empty_database: Database, first: str) -> None:
    dsn = empty_database.dsn
    upgrades = [upgrade, upgrade_receiver] if first == "schema" else [upgrade_receiver, upgrade]
    for run in (*upgrades, *upgrades):
        run(dsn)
    empty_database.execute("SELECT inturn.create_topic('orders'), inturn.append('orders', 'x', 'insert')")
    assert accept(empty_database, 1)

    before = dump(empty_database)
    downgrade_receiver(dsn, force=True)
    assert empty_database.value("SELECT inturn.append('orders', 'x', 'delete')") == 2
    with connect_as(empty_database, "inturn_caller") as caller:
        assert caller.execute("SELECT inturn.append('orders', 'y', 'insert')").fetchone() == (1,)
    upgrade_receiver(dsn)
    if first == "schema":
        assert dump(empty_database) == before
    assert accept(empty_database, 1)

    downgrade(dsn, force=True)
    assert not accept(empty_database, 1)
    with connect_as(empty_database, "inturn_receiver") as session:
        assert session.execute(ACCEPT, ["x", 2, 1]).fetchone() == (True,)
    downgrade_receiver(dsn, force=True)
    assert empty_database.value("SELECT to_regnamespace('inturn')") is None


def test_the_command_line_installs_prints_and_removes_it(empty_database: Database, server: Server) -> None:
    dsn, where = empty_database.dsn, f"database {empty_database.name}"
    code, script, _ = run_inturn(dsn, "upgrade", "--receiver-only", "--sql")
    assert (code, script) == (0, receiver_script())
    assert empty_database.value("SELECT to_regnamespace('inturn')") is None
    for said in (f"installed in {where}, revision {HEAD}", f"of {where} is at revision {HEAD} already"):
        code, out, _ = run_inturn(dsn, "upgrade", "--receiver-only")
        assert (code, out) == (0, f"receiver in schema inturn {said}\n")
    code, script, _ = run_inturn(dsn, "upgrade", "--receiver-only", "--sql")
    assert script == f"-- receiver in schema inturn is at revision {HEAD} already: nothing to do\n"
    accept(empty_database, 1)
    code, _, err = run_inturn(dsn, "downgrade", "--receiver-only")
    assert code == 1
    assert "takes effect again" in err
    assert run_inturn(dsn, "downgrade", "--receiver-only", "--to", "0001")[0] == 2
    code, out, _ = run_inturn(dsn, "downgrade", "--receiver-only", "--force")
    assert (code, out) == (0, f"receiver in schema inturn removed from {where}\n")
    assert run_inturn(dsn, "downgrade", "--receiver-only")[0] == 5


def test_a_database_that_refuses_raises_the_drivers_error(empty_database: Database) -> None:
    with pytest.raises(psycopg.Error):
        upgrade_receiver(f"{empty_database.dsn} options='-c default_transaction_read_only=on'")
