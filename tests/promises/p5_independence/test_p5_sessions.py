"""P5: what one handler leaves in the session never meets the next."""

from __future__ import annotations

import decimal
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import psycopg
import pytest
from support import roles, shop
from support.bad_company import innocent_and_charged
from support.database import PATIENCE, Database, until
from support.left_behind import (
    AT_ONCE,
    BY_A_NEW_CONNECTION,
    BY_THE_NEXT_CLAIM,
    IN_SQL,
    NEVER_SHARED,
)
from support.place import ROOT
from support.refusal import refusal

from inturn.applier import Applier, Fleet

pytestmark = pytest.mark.needs_session(
    "a pooler gives each transaction another session, with what its other clients have left there"
)

_LOOK = """
    SELECT current_setting('search_path'), current_user::text, current_setting('DateStyle'),
           current_setting('statement_timeout'), current_setting('lock_timeout'), current_setting('TimeZone'),
           current_setting('transaction_isolation'), current_setting('transaction_read_only'),
           current_setting('default_transaction_isolation'), current_setting('default_transaction_read_only'),
           current_setting('row_security'), coalesce(current_setting('app.tenant', true), ''),
           coalesce(current_setting('inturn.notify', true), ''), current_setting('client_encoding'),
           pg_my_temp_schema() <> 0, (SELECT count(*) FROM pg_listening_channels()),
           (SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'),
           (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
"""


def _look(connection: psycopg.Connection[Any]) -> tuple[Any, ...]:
    row = connection.execute(_LOOK).fetchone()
    assert isinstance(row, tuple)
    return row


def _run(
    database: Database,
    kinds: Mapping[str, Callable[[psycopg.Connection[Any]], object]],
    *commands: tuple[str, str],
    waits: bool = False,
    steady: bool = True,
) -> None:
    """Apply commands of each kind by one worker, and compare what each `look` finds with the first one's."""
    shop.open_shop(database)
    seen: list[tuple[Any, ...]] = []
    applier = Applier()

    @applier.handler(shop.TOPIC)
    def handle(connection: psycopg.Connection[Any], command: Any) -> None:
        if command.name.startswith("leave"):
            kinds[command.key.partition(" ")[2]](connection)
            if command.name == "leave_and_fail" and command.attempt == 1:
                raise ValueError("after it")
        else:
            seen.append(_look(connection))

    with shop.at_work(database, applier, steady=steady):
        shop.append(database, "first", "look")
        until(lambda: len(seen) == 1, "the first look")
        looks = 1
        for kind in kinds:
            for key, name in commands:
                shop.append(database, f"{key} {kind}", *name.split())
                if waits:
                    until(lambda: not database.value("SELECT count(*) FROM inturn.ticket"), "applied")
            looks += sum(name.split().count("look") for _, name in commands)
            until(lambda looks=looks: len(seen) == looks, f"the others after {kind}")  # type: ignore[misc]
            until(lambda: not database.value("SELECT count(*) FROM inturn.ticket"), "all applied")
            assert set(seen) == {seen[0]}, kind
    errors = "SELECT DISTINCT split_part(error, E'\\n', 1) FROM inturn.turn WHERE error IS NOT NULL"
    assert [error for (error,) in database.execute(errors)] in ([], ["ValueError: after it"])


def test_p5_what_a_handler_changes_is_put_back_before_the_next_command(database: Database) -> None:
    _run(database, AT_ONCE, ("a", "leave look"), ("ь", "look"))


@pytest.mark.parametrize("batches", [False, True], ids=["commands", "batches"])
def test_p5_what_a_handler_sets_in_its_thread_is_not_there_for_the_next_command(
    database: Database, *, batches: bool
) -> None:
    """A context variable, as logs have them; how precise decimals are; what is called for notices."""
    shop.open_shop(database)
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    seen: list[tuple[str, int, int]] = []
    applier = Applier(parse_float=decimal.Decimal)

    def handle(connection: psycopg.Connection[Any], command: Any) -> None:
        seen.append((tenant.get(), decimal.getcontext().prec, len(connection._notice_handlers)))
        tenant.set("somebody")
        decimal.getcontext().prec = 2
        connection.add_notice_handler(print)

    def handle_all(connection: psycopg.Connection[Any], commands: list[Any]) -> int:
        handle(connection, commands[0])
        return 1

    if batches:
        applier.batch_handler(shop.TOPIC)(handle_all)
    else:
        applier.handler(shop.TOPIC)(handle)
    with shop.at_work(database, applier, workers=1):
        for key in "ab":
            database.execute(
                "SELECT inturn.append('shop', %s, 'do', '1.5') FROM generate_series(1, 2)", [key]
            )
        until(lambda: not database.value("SELECT count(*) FROM inturn.ticket"), "all applied")
    assert set(seen) == {("nobody", 28, 0)}
    assert len(seen) == 4


def test_p5_what_cannot_be_put_back_costs_the_connection(database: Database) -> None:
    _run(database, BY_A_NEW_CONNECTION, ("a", "leave"), ("b", "look"))


@pytest.mark.parametrize("what", NEVER_SHARED)
def test_p5_loaders_that_a_handler_registers_are_not_those_of_inturn(database: Database, what: str) -> None:
    shop.open_shop(database)
    applier = Applier()
    applier.handler(shop.TOPIC)(lambda connection, _: NEVER_SHARED[what](connection))
    with shop.at_work(database, applier):
        for key in ("a", "b", "c"):
            shop.append(database, key, "insert", "insert")
        until(lambda: database.value("SELECT count(*) FROM inturn.ticket") == 0, "all applied")
    assert database.execute("SELECT DISTINCT outcome FROM inturn.turn") == [("applied",)]


def test_p5_nor_does_what_a_handler_changes_before_it_fails_meet_the_next_command(database: Database) -> None:
    _run(database, AT_ONCE, ("a", "leave_and_fail"), ("b", "look"), ("a", "look"))


@pytest.mark.parametrize("steady", [True, False], ids=["at work", "just started"])
def test_p5_what_nobody_saw_is_found_by_the_next_claim(database: Database, *, steady: bool) -> None:
    _run(database, BY_THE_NEXT_CLAIM, ("a", "leave"), ("b", "look"), waits=True, steady=steady)


def test_p5_what_is_gone_with_the_transaction_costs_no_connection(database: Database) -> None:
    """A temporary table that is dropped at commit is common; a lock may be given back."""
    shop.open_shop(database)
    backends: set[int] = set()
    applier = Applier()

    @applier.handler(shop.TOPIC)
    def handle(connection: psycopg.Connection[Any], _: Any) -> None:
        backends.add(connection.info.backend_pid)
        connection.execute("CREATE TEMP TABLE scratch (n integer) ON COMMIT DROP")
        connection.execute("DROP TABLE scratch")
        connection.execute("CREATE TEMP TABLE scratch (n integer)")
        connection.execute("DROP TABLE scratch")
        connection.execute("SELECT pg_advisory_lock(1), pg_advisory_unlock(1)")

    with shop.at_work(database, applier):
        shop.append_keys(database, 20)
        until(lambda: not database.value("SELECT count(*) FROM inturn.ticket"), "all applied")
    assert len(backends) == 1


@pytest.mark.each_value
@pytest.mark.parametrize("by", ["CALL", "CALL, at first", "inturn apply"])
@pytest.mark.parametrize("what", IN_SQL)
def test_p5_what_a_sql_target_changes_is_charged_to_no_other_key(
    database: Database, what: str, by: str
) -> None:
    """Of the others each writes by the database's search_path, and waits a little for a lock."""
    database.execute(f"ALTER DATABASE {database.name} SET search_path = app, public")
    shop.open_shop(database, target="sql")
    database.execute(f"""
        CREATE FUNCTION app.leave(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO witness (key, seq, name) VALUES (command.key, command.seq, command.name);
            IF command.name = 'leave' THEN
                {IN_SQL[what]};
            END IF;
        END $$;
        SELECT inturn.set_topic('shop', target => 'sql:app.leave')""")
    shop.append(database, "bad", "leave")
    shop.append_keys(database, 30)
    if by == "inturn apply":
        shop.apply_all(database, Applier())
    else:
        with database.connect(user=roles.APPLIER) as session:
            session.execute(f"SET inturn.careful_keys = {20 if by.endswith('first') else 0}")
            before = session.execute(_LOOK).fetchone()
            session.execute("CALL inturn.apply()")
            assert session.execute(_LOOK).fetchone() == before
    assert innocent_and_charged(database) == []
    shop.assert_once_and_in_turn(database)


@pytest.mark.parametrize("by", ["CALL", "CALL, at first", "inturn apply"])
def test_p5_no_setting_that_a_sql_target_leaves_is_there_in_the_next_transaction(
    database: Database, by: str
) -> None:
    """Of any kind; a custom one, which nothing lists, only where the session is the applier's own."""
    shop.open_shop(database, target="sql")
    database.execute("""
        CREATE TABLE app.met (key text, setting text);
        CREATE FUNCTION app.leave(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO app.met SELECT command.key, s.name || ' = ' || s.setting FROM pg_settings s
            WHERE s.setting IS DISTINCT FROM s.reset_val AND s.context = 'user' AND s.name !~ '^transaction_';
            INSERT INTO app.met SELECT command.key, 'tenant' WHERE current_setting('app.tenant', true) <> '';
            IF command.name = 'leave' THEN
                SET work_mem = '64 kB'; SET bytea_output = 'escape'; SET idle_session_timeout = '1 min';
                SET statement_timeout = '1 min'; SET row_security = off; SET enable_indexscan = off;
                PERFORM set_config('application_name', E'it''s\nmine', false);
                PERFORM set_config('app.tenant', 'one', false);
            END IF;
        END $$;
        SELECT inturn.set_topic('shop', target => 'sql:app.leave')""")
    shop.append(database, "k1", "look")
    for n in range(2, 8):
        shop.append(database, f"k{n}", "leave")
    if by == "inturn apply":
        applying = Fleet(database.applier_dsn, topics=[shop.TOPIC], max_keys=1, drain=True)
        applying.start()
        applying.wait(PATIENCE)
        assert applying.end(0).commands == 7
    else:
        with database.connect(user=roles.APPLIER) as session:
            session.execute(f"SET inturn.careful_keys = {20 if by.endswith('first') else 0}")
            session.execute("SET work_mem = '8 MB'")
            session.execute("CALL inturn.apply(max_keys => 1)")
            assert session.execute("SHOW work_mem").fetchone() == ("8MB",)
    met: dict[str, list[str]] = {key: [] for (key,) in database.execute("SELECT key FROM inturn.turn")}
    for key, setting in database.execute("SELECT * FROM app.met WHERE setting <> 'tenant' ORDER BY 1, 2"):
        met[key].append(setting)
    assert len(met) == 7
    assert set(map(tuple, met.values())) == {tuple(met["k1"])}
    if by == "inturn apply":
        assert database.value("SELECT count(*) FROM app.met WHERE setting = 'tenant'") == 0


def test_p5_nothing_else_that_a_sql_target_leaves_is_in_the_session_of_inturn_apply(
    database: Database,
) -> None:
    """The second would fail by the table, and somebody else would wait for the lock."""
    shop.open_shop(database, target="sql")
    database.execute("""
        CREATE FUNCTION app.leave(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            CREATE TEMP TABLE scratch (n integer);
            ASSERT (SELECT count(*) = 0 FROM pg_listening_channels());
            ASSERT (SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid());
            PERFORM pg_advisory_lock(77);
            LISTEN mine;
            INSERT INTO app.witness (key, seq, name) VALUES (command.key, command.seq, command.name);
        END $$;
        SELECT inturn.set_topic('shop', target => 'sql:app.leave')""")
    shop.append_keys(database, 5)
    applying = Fleet(database.applier_dsn, topics=[shop.TOPIC], max_keys=1, drain=True)
    applying.start()
    applying.wait(PATIENCE)
    done = applying.end(0)
    assert (done.commands, done.failures) == (5, 0)


#: What a target may set that inturn's own code reads, or has read.
_FORGED = {
    "cancelled": "ended",
    "merge_cancelled": "on",
    "careful_keys": "many",
    "max_claim_octets": "0",
    "notify": "off",
    "os_user": "root@db1",
    "acting_as": "ann",
}


def test_p5_every_setting_that_the_sql_of_inturn_reads_is_forged_below() -> None:
    read = {
        name
        for path in (ROOT / "schema" / "sql").rglob("*.sql")
        for name in re.findall(r"current_setting\('inturn\.(\w+)'", path.read_text("utf-8"))
    }
    assert "notify" in read
    assert read <= _FORGED.keys()


@pytest.mark.parametrize("by", ["CALL", "CALL, at first", "inturn apply"])
def test_p5_no_setting_of_inturn_that_a_sql_target_leaves_deceives_inturn(
    database: Database, by: str
) -> None:
    """Not the batch in hand, nor the next one, nor the next CALL in the session."""
    shop.open_shop(database, target="sql")
    forging = "".join(f"PERFORM set_config('inturn.{n}', '{v}', false);" for n, v in _FORGED.items())
    database.execute(f"""
        CREATE FUNCTION app.forge(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            {forging}
            INSERT INTO app.witness (key, seq, name) VALUES (command.key, command.seq, command.name);
        END $$;
        SELECT inturn.set_topic('shop', target => 'sql:app.forge')""")
    database.execute("SELECT inturn.merge_rule('shop', 'update', 'update', 'last')")
    merged, careful = 0, "20" if by.endswith("first") else "0"
    with database.connect(user=roles.APPLIER) as session:
        session.execute(f"SET inturn.careful_keys = {careful}")
        for key in "abc":
            shop.append(database, key, "update", "update", "insert", "insert")
            shop.append(database, key + key, "update", "update")
            merged += 2
            if by == "inturn apply":
                shop.apply_all(database, max_keys=1)
            else:
                session.execute("CALL inturn.apply(max_keys => 1)")
                kept = "SELECT current_setting('inturn.' || n, true) FROM unnest(%s::text[]) n"
                found = [each for (each,) in session.execute(kept, [list(_FORGED)[2:]])]
                assert found == [careful, "", "", "", ""]
    assert shop.count_applied(database) == database.value("SELECT count(*) FROM inturn.command_log") - merged
    assert database.execute("SELECT DISTINCT outcome FROM inturn.turn") == [("applied",)]


#: What a COMMIT of its own that reads the cursor would fail with.
_NEVER = """
    CREATE FUNCTION app.never() RETURNS integer LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'a COMMIT has read it'; END $$;
"""
_OUTCOMES = "SELECT outcome, split_part(error, E'\\n', 1), count(*) FROM inturn.turn GROUP BY 1, 2 ORDER BY 1"


@pytest.mark.parametrize("by", ["CALL", "CALL, at first", "inturn apply"])
def test_p5_what_a_sql_target_leaves_open_is_closed_before_the_commit(database: Database, by: str) -> None:
    """A COMMIT reads a cursor WITH HOLD to its end, and no name can be given twice. A caller's own stays."""
    shop.open_shop(database, target="sql", settings="max_attempts => 1")
    database.execute(
        _NEVER
        + """
        CREATE FUNCTION app.leave(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            IF left(current_query(), 4) <> 'CALL' AND command.key <> 'bad' THEN  -- which no rollback undoes
                EXECUTE format('PREPARE left_%s AS SELECT 1', command.seq);
            END IF;
            EXECUTE format('DECLARE left_%s CURSOR WITH HOLD FOR SELECT app.never()', command.seq);
            IF command.name = 'fail' THEN
                RAISE EXCEPTION 'after it';
            END IF;
        END $$;
        SELECT inturn.set_topic('shop', target => 'sql:app.leave')"""
    )
    shop.append_keys(database, 3)
    shop.append(database, "bad", "insert", "fail")
    if by == "inturn apply":
        shop.apply_all(database, max_keys=1)
    else:
        with database.connect(user=roles.APPLIER) as session:
            session.execute(f"SET inturn.careful_keys = {20 if by.endswith('first') else 0}")
            session.execute("DECLARE mine CURSOR WITH HOLD FOR SELECT 8")
            session.execute("CALL inturn.apply(max_keys => 1)")
            assert session.execute("FETCH mine").fetchall() == [(8,)]
            assert session.execute("SELECT name FROM pg_cursors").fetchall() == [("mine",)]
    assert database.execute(_OUTCOMES) == [("applied", None, 3), ("held", "after it (SQLSTATE P0001)", 1)]


@pytest.mark.parametrize("steady", [True, False], ids=["at work", "just started"])
def test_p5_cursors_that_a_handler_leaves_open_are_closed_before_the_commit(
    database: Database, *, steady: bool
) -> None:
    """Also one that no tag of a statement tells of; and the connection goes on."""
    shop.open_shop(database, settings="max_attempts => 1")
    database.execute(_NEVER)
    backends: set[int] = set()
    applier = Applier()

    @applier.handler(shop.TOPIC)
    def handle(connection: psycopg.Connection[Any], command: Any) -> None:
        backends.add(connection.info.backend_pid)
        declare = f"DECLARE left_{command.seq} CURSOR WITH HOLD FOR SELECT app.never()"
        connection.execute(f"DO $$ BEGIN EXECUTE '{declare}'; END $$")
        if command.name == "fail":
            raise ValueError("after it")

    shop.append_keys(database, 3)
    shop.append(database, "bad", "insert", "fail")
    with shop.at_work(database, applier, steady=steady, workers=1):
        until(lambda: database.value("SELECT count(*) FROM inturn.turn") == 4, "all were taken")
    assert database.execute(_OUTCOMES) == [("applied", None, 3), ("held", "ValueError: after it", 1)]
    assert len(backends) == 1


def test_p5_call_ends_where_a_setting_cannot_be_put_back(database: Database) -> None:
    """As where a superuser's function has set it. What was applied is committed, and no key is charged."""
    shop.open_shop(database, target="sql")
    database.administer("""
        CREATE FUNCTION app.leave(command inturn.command) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
        BEGIN
            INSERT INTO app.witness (key, seq, name) VALUES (command.key, command.seq, command.name);
            SET session_replication_role = replica;
        END $$;
        GRANT EXECUTE ON FUNCTION app.leave TO PUBLIC""")
    database.execute("SELECT inturn.set_topic('shop', target => 'sql:app.leave')")
    shop.append_keys(database, 2)
    said = refusal(database, "CALL inturn.apply(max_keys => 1)")
    assert "session_replication_role" in said.message
    assert "in a new session" in said.hint
    assert database.execute("SELECT outcome FROM inturn.turn") == [("applied",)]
