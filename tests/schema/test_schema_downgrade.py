"""Removing the schema: refused while commands are pending, complete otherwise, and repeatable."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from support.database import Database, until
from support.dump import dump
from support.roles import NOT_THEIR_TABLES

from inturn.schema import locks
from inturn.schema.errors import CommandsPending, SchemaInUse, SchemaMismatch
from inturn.schema.install import downgrade, upgrade
from inturn.schema.receiver import upgrade_receiver
from inturn.schema.version import HEAD


@pytest.fixture
def orders(database: Database) -> Database:
    """The database with a topic that nothing depends on from outside."""
    database.execute("SELECT inturn.create_topic('orders', max_attempts => 1)")
    return database


def wait_for_lock(database: Database, like: str) -> int:
    """Wait until some session waits for a lock in a statement like this; return its pid."""
    query = """
        SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE %s
    """
    rows = until(lambda: database.execute(query, [like]), f"a session blocked in {like}")
    return int(rows[0][0])


def patient(database: Database) -> str:
    """Return the DSN of a removal that waits for locks as long as a test may take; how long follows this."""
    return make_conninfo(database.dsn, options="-c deadlock_timeout=60s")


def test_everything_goes_but_the_roles(empty_database: Database) -> None:
    objects = """
        SELECT 'class', oid::regclass::text FROM pg_class WHERE oid >= 16384
            AND relnamespace::regnamespace::text NOT LIKE 'pg_%'
        UNION ALL SELECT 'proc', oid::regprocedure::text FROM pg_proc WHERE oid >= 16384
        UNION ALL SELECT 'type', oid::regtype::text FROM pg_type WHERE oid >= 16384
            AND typnamespace::regnamespace::text NOT LIKE 'pg_%'
        UNION ALL SELECT 'schema', oid::regnamespace::text FROM pg_namespace WHERE oid >= 16384
            AND nspname NOT LIKE 'pg_%'
    """
    before = empty_database.execute(objects)
    upgrade(empty_database.dsn)
    assert len(empty_database.execute(objects)) > len(before)
    downgrade(empty_database.dsn)
    assert empty_database.execute(objects) == before
    roles = ["inturn_caller", "inturn_applier", "inturn_operator", "inturn_admin"]
    there = "SELECT count(*) FROM pg_roles WHERE rolname = ANY (%s)"
    assert empty_database.value(there, [roles]) == 4


def test_upgrade_downgrade_upgrade_gives_the_same(orders: Database) -> None:
    orders.execute(NOT_THEIR_TABLES)  # of what the tests' owner makes
    before = dump(orders)
    downgrade(orders.dsn)
    assert upgrade(orders.dsn) == (None, HEAD)
    assert dump(orders) == before
    assert orders.execute("SELECT * FROM inturn.topic") == []


@pytest.mark.parametrize("held", [False, True], ids=["ready", "held"])
def test_refused_while_a_command_is_pending_unless_forced(orders: Database, held: bool) -> None:
    orders.execute("SELECT inturn.append('orders', 'a', 'insert')")
    if held:
        orders.execute("SELECT FROM inturn.claim('orders')")
        orders.execute(
            "SELECT inturn.claim('orders'); SELECT inturn.fail('orders', 'a', 1, 1, 1, 'no', 'me')"
        )
    before = dump(orders)
    with pytest.raises(CommandsPending, match=r"not applied, on 1 key\.") as refused:
        downgrade(orders.dsn)
    assert "inturn apply --drain" in refused.value.hint
    assert "--force" in refused.value.hint
    assert dump(orders) == before
    assert orders.value("SELECT count(*) FROM inturn.command_log") == 1
    downgrade(orders.dsn, force=True)
    assert orders.value("SELECT to_regnamespace('inturn')") is None


def test_what_has_arrived_and_has_no_number_is_pending_too(orders: Database) -> None:
    orders.execute("SELECT inturn.create_topic('mails', numbering => 'arrival')")
    for key in ("a", "a", "b"):
        orders.execute("SELECT inturn.append('mails', %s, 'send')", [key])
    with pytest.raises(CommandsPending, match=r"not applied, on 2 keys\."):
        downgrade(orders.dsn)
    assert orders.value("SELECT count(*) FROM inturn.intake") == 3
    downgrade(orders.dsn, force=True)
    assert orders.value("SELECT to_regnamespace('inturn')") is None


def test_applied_commands_do_not_hold_it_up(orders: Database) -> None:
    orders.execute("SELECT inturn.append('orders', 'a', 'insert')")
    orders.execute("SELECT FROM inturn.claim('orders')")
    orders.execute(
        "SELECT inturn.claim('orders'); SELECT inturn.finish('orders', '{a}', '{1}', '{1}', '{1}', 'me')"
    )
    downgrade(orders.dsn)
    assert orders.value("SELECT to_regnamespace('inturn')") is None


def test_an_append_in_flight_is_waited_for_and_counted(orders: Database) -> None:
    caller = orders.session()
    caller.execute("SELECT inturn.append('orders', 'a', 'insert')")
    with ThreadPoolExecutor(1) as threads:
        removal = threads.submit(downgrade, patient(orders))
        wait_for_lock(orders, "LOCK TABLE%")
        caller.commit()
        with pytest.raises(CommandsPending):
            removal.result()
    assert orders.value("SELECT count(*) FROM inturn.command_log") == 1


def test_a_caller_that_comes_meanwhile_deadlocks_with_nobody(orders: Database) -> None:
    orders.execute("SELECT inturn.append('orders', 'a', 'insert')")
    reader, caller = orders.session(), orders.session()
    reader.execute("SELECT FROM inturn.command_log")
    with ThreadPoolExecutor(1) as threads:
        removal = threads.submit(downgrade, patient(orders), force=True)
        wait_for_lock(orders, "LOCK TABLE%")
        append = caller.begin("SELECT inturn.append('orders', 'a', 'delete')")
        caller.wait_blocked()
        reader.commit()
        removal.result()
        with pytest.raises(psycopg.Error) as refused:
            append.result()
    assert refused.value.sqlstate in {"42P01", "42883", "3F000", "XX000"}
    assert orders.value("SELECT to_regnamespace('inturn')") is None


def test_a_handler_that_takes_the_command_type_is_not_torn_away(witness: Database) -> None:
    before = dump(witness), dump(witness, "app")
    with pytest.raises(SchemaInUse, match=r"app\.apply_order\(inturn\.command\) depends on type"):
        downgrade(witness.dsn)
    assert (dump(witness), dump(witness, "app")) == before
    assert witness.value("SELECT inturn.append('orders', 'a', 'insert')") == 1
    witness.execute("CALL inturn.apply()")
    assert witness.value("SELECT count(*) FROM app.witness") == 1


def test_a_table_of_the_users_own_in_the_schema_is_not_torn_away(orders: Database) -> None:
    orders.execute("CREATE TABLE inturn.theirs (id integer)")
    with pytest.raises(SchemaInUse, match=r"holds what is not inturn's: table inturn\.theirs"):
        downgrade(orders.dsn)
    assert orders.value("SELECT inturn.append('orders', 'a', 'insert')") == 1


def test_a_table_of_the_users_own_beside_the_guard_stays_with_it(orders: Database) -> None:
    upgrade_receiver(orders.dsn)
    orders.execute("CREATE TABLE inturn.theirs (id integer)")
    downgrade(orders.dsn)
    tables = (
        "SELECT relname::text FROM pg_class"
        " WHERE relnamespace = 'inturn'::regnamespace AND relkind IN ('r', 'v')"
    )
    assert {row[0] for row in orders.execute(tables)} == {"accepted", "receiver_version", "theirs"}
    with pytest.raises(SchemaInUse, match=r"not installed into.*table inturn\.theirs"):
        upgrade(orders.dsn)
    orders.execute("DROP TABLE inturn.theirs")
    assert upgrade(orders.dsn) == (None, HEAD)


@pytest.mark.parametrize(
    ("theirs", "depends"),
    [
        ("CREATE VIEW app.keys AS SELECT * FROM inturn.list_keys()", r"view app\.keys depends on function"),
        ("CREATE VIEW app.log AS SELECT * FROM inturn.outbox", r"view app\.log depends on view"),
        ("CREATE TABLE app.t (topic text REFERENCES inturn.topic)", r"app\.t depends on table"),
        ("CREATE TABLE app.c (command inturn.command)", r"column command of table app\.c depends on type"),
    ],
)
def test_whatever_depends_on_it_from_outside_is_named_and_not_torn_away(
    orders: Database, theirs: str, depends: str
) -> None:
    orders.execute("CREATE SCHEMA app")
    orders.execute(theirs)
    before = dump(orders), dump(orders, "app")
    with pytest.raises(SchemaInUse, match=depends):
        downgrade(orders.dsn)
    assert (dump(orders), dump(orders, "app")) == before


def test_what_its_own_parts_need_of_one_another_does_not_hold_it_up(orders: Database) -> None:
    orders.execute("ALTER TABLE inturn.topic ADD COLUMN n bigint DEFAULT inturn.pending_commands('{}')")
    downgrade(orders.dsn)
    assert orders.value("SELECT to_regnamespace('inturn')") is None


def test_it_waits_for_callers_before_it_locks_anything_else(orders: Database) -> None:
    caller = orders.session()
    caller.execute("SELECT inturn.append('orders', 'a', 'insert')")
    with ThreadPoolExecutor(1) as threads:
        removal = threads.submit(downgrade, patient(orders), force=True)
        pid = wait_for_lock(orders, "LOCK TABLE%")
        held = """
            SELECT relation::regclass::text FROM pg_locks
            WHERE pid = %s AND granted AND mode = 'AccessExclusiveLock' AND locktype = 'relation'
        """
        assert orders.execute(held, [pid]) == []
        caller.commit()
        removal.result()
    assert orders.value("SELECT to_regnamespace('inturn')") is None


def test_a_removal_that_never_gets_its_locks_says_who_has_them(
    orders: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    holder = orders.session(application_name="reports")
    holder.execute("SELECT FROM inturn.topic")
    with pytest.raises(SchemaInUse, match=rf"not downgraded: .* by backend {holder.pid} \(reports\)\."):
        downgrade(orders.dsn)
    holder.rollback()
    assert orders.value("SELECT inturn.append('orders', 'a', 'insert')") == 1
    downgrade(orders.dsn, force=True)


def test_without_an_installation_there_is_nothing_to_remove(empty_database: Database) -> None:
    with pytest.raises(SchemaMismatch, match="schema inturn is not installed"):
        downgrade(empty_database.dsn)


def test_the_other_schema_stays(orders: Database) -> None:
    upgrade(orders.dsn, schema="other")
    before = dump(orders, "other")
    downgrade(orders.dsn)
    assert dump(orders, "other") == before


def test_a_topic_of_any_kind_goes_too(orders: Database) -> None:
    orders.execute("SELECT inturn.create_topic('calls', 'https://b.internal/', numbering => 'given')")
    orders.execute("SELECT inturn.append('calls', 'k', 'insert', seq => 2)")
    with pytest.raises(CommandsPending):
        downgrade(orders.dsn)
    downgrade(orders.dsn, force=True)
    assert orders.value("SELECT to_regnamespace('inturn')") is None
