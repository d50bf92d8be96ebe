"""From a released revision to today's, with data in it and callers and appliers at work; and back."""

from __future__ import annotations

from importlib.resources import files

import pytest
from support.database import Database
from support.dump import dump

from inturn.schema.errors import SchemaMismatch
from inturn.schema.install import downgrade, upgrade, upgrade_script
from inturn.schema.version import HEAD, check_version, installed_version

RELEASED = ("0001",)


@pytest.fixture(params=RELEASED)
def old(request: pytest.FixtureRequest, empty_database: Database) -> Database:
    """A database with the schema of an earlier release."""
    upgrade(empty_database.dsn)
    downgrade(empty_database.dsn, revision=request.param)
    assert installed_version(empty_database.connect()) == request.param
    return empty_database


def fill(database: Database) -> None:
    """A held, a retrying, a ready and an idle key, by what every release has."""
    database.execute("""
        CREATE SCHEMA app;
        CREATE TABLE app.witness (id bigserial, key text, seq bigint, name text);
        CREATE FUNCTION app.apply_order(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO app.witness (key, seq, name) VALUES (command.key, command.seq, command.name);
            IF command.name = 'fail' THEN RAISE EXCEPTION 'refused %', command.key; END IF;
        END $$;
        SELECT inturn.create_topic('orders', 'sql:app.apply_order', 1);
        SELECT inturn.create_topic('slow', 'sql:app.apply_order', 9, '1 hour', '2 hours');
        SELECT inturn.append('orders', 'held', 'fail'), inturn.append('orders', 'held', 'insert'),
               inturn.append('slow', 'retrying', 'fail'), inturn.append('orders', 'idle', 'insert')
    """)
    database.execute("CALL inturn.apply()")
    database.execute("SELECT inturn.append('orders', 'ready', 'insert')")


def test_what_going_back_leaves_is_the_earlier_release_and_nothing_of_a_later_one(old: Database) -> None:
    left = dump(old)
    downgrade(old.dsn)
    script = (files("inturn.schema.revisions.versions") / "0001_core.sql").read_text("utf-8")
    old.connect().execute(
        f"""
        CREATE SCHEMA inturn;
        CREATE TABLE inturn.schema_version
            (version_num varchar(32) NOT NULL CONSTRAINT schema_version_pkc PRIMARY KEY);
        {script}""".encode()
    )
    assert dump(old) == left


def test_every_key_goes_on_where_it_stood(old: Database) -> None:
    fill(old)
    look = "SELECT topic, key, applied_seq, epoch, attempts, last_error FROM inturn.key_cursor ORDER BY 2"
    before = old.execute(look)
    version = installed_version(old.connect())
    assert upgrade(old.dsn) == (version, HEAD)
    check_version(old.connect())
    assert old.execute(look) == before
    states = dict(old.execute("SELECT key, inturn.key_state(c) FROM inturn.key_cursor c"))
    assert states == {"held": "held", "retrying": "retrying", "ready": "ready", "idle": "idle"}
    old.execute("SELECT inturn.skip('orders', 'held', 1, 'no'), inturn.retry('slow', 'retrying')")
    old.execute("CALL inturn.apply()")
    assert old.execute("SELECT key, applied_seq FROM inturn.key_cursor ORDER BY key") == [
        *(("held", 2), ("idle", 1), ("ready", 1), ("retrying", 0)),
    ]
    assert old.execute("SELECT DISTINCT on_exhausted FROM inturn.topic") == [("hold",)]


def test_callers_and_appliers_of_the_old_release_that_are_connected_go_on(old: Database) -> None:
    """Their prepared statements too: no cached plan, and no call that the new schema does not know."""
    fill(old)
    caller, applier = old.connect(prepare_threshold=0), old.connect(prepare_threshold=0)
    append = "SELECT inturn.append(%s, %s, %s)"
    claim = (
        "SELECT key, applied_seq, epoch, attempt, ready_at, seq, name, payload, created_at"
        " FROM inturn.claim_commands(%s, %s, %s)"
    )
    finish = "SELECT inturn.finish(%s, %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s)"
    fail = "SELECT inturn.fail(%s, %s, %s, %s, %s, %s, %s)"

    def work() -> None:
        seq = caller.execute(append, ("orders", "old", "insert")).fetchone()
        assert seq is not None
        with applier.transaction():
            rows = applier.execute(claim, ("orders", "-infinity", 50)).fetchall()
            mine = next(row for row in rows if row[0] == "old")
            applier.execute(finish, ("orders", ["old"], [mine[2]], [mine[1] + 1], [mine[5]], "old"))
        caller.execute(append, ("orders", "old", "insert"))
        with applier.transaction():
            rows = applier.execute(claim, ("orders", "-infinity", 50)).fetchall()
            mine = next(row for row in rows if row[0] == "old")
            applier.execute(fail, ("orders", "old", mine[2], mine[1] + 1, mine[5], "no", "old"))
        old.execute("UPDATE inturn.key_cursor SET held_at = NULL, ready_at = now() WHERE key = 'old'")
        applier.execute(
            "SELECT keys, commands, failures, redo, hand FROM inturn.apply_batch(%s, %s, %s, %s)",
            ("orders", "-infinity", 50, "old"),
        )

    work()
    upgrade(old.dsn)
    work()
    assert old.value("SELECT applied_seq FROM inturn.key_cursor WHERE key = 'old'") == 4


def test_the_scripts_of_all_releases_can_be_run_by_hand(old: Database) -> None:
    version = installed_version(old.connect())
    connection = old.connect()
    connection.execute(upgrade_script(from_revision=version).encode())
    by_hand = dump(old)
    downgrade(old.dsn)
    upgrade(old.dsn)
    assert by_hand == dump(old)


def test_going_back_leaves_no_key_asleep(database: Database) -> None:
    fill(database)
    database.execute("SELECT inturn.pause('orders', 'ready'), inturn.skip('orders', 'held', 1, 'no')")
    database.execute("SELECT inturn.set_topic('slow', on_exhausted => 'skip', max_attempts => 1)")
    database.execute("SELECT inturn.retry('slow', 'retrying')")
    database.execute("CALL inturn.apply()")
    downgrade(database.dsn, revision="0001")
    database.execute("CALL inturn.apply()")
    pending = """
        SELECT c.key FROM inturn.key_cursor c JOIN inturn.command_log l
        ON (l.topic, l.key) = (c.topic, c.key) AND l.seq > c.applied_seq
    """
    assert database.execute(pending) == []
    with pytest.raises(SchemaMismatch, match="older than the"):
        check_version(database.connect())
