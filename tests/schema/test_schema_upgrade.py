"""From one release to the next, with data in it and callers and appliers at work; and back.

There is one revision yet. The next one is made up: see support.next_release.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psycopg
import pytest
import sqlalchemy.exc
from support.database import Database, set_revision, until
from support.dump import dump
from support.next_release import MARK, NEXT, NextRelease
from support.process import inturn_apply, run_inturn
from support.roles import APPLIER, CALLER, OWNER

from inturn.schema.errors import SchemaMismatch
from inturn.schema.install import downgrade, upgrade, upgrade_script
from inturn.schema.receiver import upgrade_receiver
from inturn.schema.version import HEAD, check_version, installed_version

#: The revision of the last development snapshot whose revisions were thrown away.
SNAPSHOT = "0003"


@pytest.fixture
def release(tmp_path: Path) -> NextRelease:
    return NextRelease(tmp_path)


@pytest.fixture
def filled(database: Database) -> Database:
    """A held, a retrying, a ready and an idle key."""
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
    return database


def run_script(database: Database, script: str) -> None:
    database.server.run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.dsn, input=script)


def test_an_upgrade_brings_all_that_the_revision_holds(database: Database, release: NextRelease) -> None:
    assert release.upgrade(database.dsn) == (HEAD, NEXT)
    assert release.upgrade(database.dsn) == (NEXT, NEXT)
    release.check_version(database.connect(user=OWNER))
    database.execute("SELECT inturn.create_topic('orders'), inturn.shelve('orders', 'top')")
    assert database.execute("SELECT name, shelf FROM inturn.topic") == [("orders", "top")]
    assert MARK in database.value("SELECT prosrc FROM pg_proc WHERE oid = 'inturn.append'::regproc")
    assert "shelf" in database.value("SELECT pg_get_function_arguments('inturn.finish'::regproc)")


def test_going_back_leaves_the_earlier_release_and_nothing_of_the_later_one(
    database: Database, release: NextRelease
) -> None:
    before = dump(database)
    release.upgrade(database.dsn)
    after = dump(database)
    assert after != before
    release.downgrade(database.dsn, revision=HEAD)
    assert dump(database) == before
    assert upgrade(database.dsn) == (HEAD, HEAD)
    check_version(database.connect(user=OWNER))
    assert release.upgrade(database.dsn) == (HEAD, NEXT)
    assert dump(database) == after


def test_removing_goes_back_through_all_revisions(database: Database, release: NextRelease) -> None:
    release.upgrade(database.dsn)
    release.downgrade(database.dsn)
    assert database.value("SELECT to_regnamespace('inturn')") is None
    assert release.upgrade(database.dsn) == (None, NEXT)


def test_many_upgrade_at_once_and_one_does_it(database: Database, release: NextRelease) -> None:
    with release.installed(), ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(upgrade, [database.dsn] * 8))
    assert sorted(outcomes) == [(HEAD, NEXT)] + [(NEXT, NEXT)] * 7


def test_an_upgrade_that_fails_leaves_what_was(database: Database, release: NextRelease) -> None:
    database.execute("CREATE TABLE inturn.shelf (theirs text)")
    before = dump(database)
    with pytest.raises((psycopg.Error, sqlalchemy.exc.DBAPIError), match='"shelf" already exists'):
        release.upgrade(database.dsn)
    assert dump(database) == before
    check_version(database.connect(user=OWNER))
    database.execute("DROP TABLE inturn.shelf")
    assert release.upgrade(database.dsn) == (HEAD, NEXT)


@pytest.mark.parametrize("schema", ["inturn", "other"])
def test_its_script_run_by_psql_does_what_the_upgrade_does(
    empty_database: Database, release: NextRelease, schema: str
) -> None:
    upgrade(empty_database.dsn, schema=schema)
    run_script(empty_database, release.script(schema=schema, from_revision=HEAD))
    from_the_one_before = dump(empty_database, schema)
    assert release.upgrade(empty_database.dsn, schema=schema) == (NEXT, NEXT)
    release.downgrade(empty_database.dsn, schema=schema)
    run_script(empty_database, release.script(schema=schema))
    from_nothing = dump(empty_database, schema)
    release.downgrade(empty_database.dsn, schema=schema)
    release.upgrade(empty_database.dsn, schema=schema)
    assert from_the_one_before == from_nothing == dump(empty_database, schema)
    assert ("inturn." in from_nothing) == (schema == "inturn")


def test_the_receivers_guard_beside_it_stays_as_it_is(database: Database, release: NextRelease) -> None:
    upgrade_receiver(database.dsn)
    before = dump(database)
    database.execute("SELECT inturn.accept('orders', 'a', 1, 1)")
    release.upgrade(database.dsn)
    release.downgrade(database.dsn, revision=HEAD)
    assert dump(database) == before
    assert database.value("SELECT inturn.accept('orders', 'a', 1, 1)") is False
    assert database.value("SELECT inturn.accept('orders', 'a', 2, 1)") is True


def test_every_key_goes_on_where_it_stood_there_and_back(filled: Database, release: NextRelease) -> None:
    look = "SELECT * FROM inturn.list_keys()"
    before = filled.execute(look)
    assert {row[1] for row in before} == {"held", "retrying", "ready", "idle"}
    assert {row[1]: row[2] for row in before} == {key: key for key in ("held", "retrying", "ready", "idle")}
    release.upgrade(filled.dsn)
    assert filled.execute(look) == before
    release.downgrade(filled.dsn, revision=HEAD)  # commands are pending: they do not hold it up
    assert filled.execute(look) == before
    release.upgrade(filled.dsn)
    filled.execute("SELECT inturn.skip('orders', 'held', 1, 'no'), inturn.retry('slow', 'retrying')")
    filled.execute("CALL inturn.apply()")
    assert filled.execute("SELECT key, applied_seq FROM inturn.list_keys() ORDER BY key") == [
        *(("held", 2), ("idle", 1), ("ready", 1), ("retrying", 0)),
    ]


def test_going_back_leaves_no_key_idle_on_its_commands(filled: Database, release: NextRelease) -> None:
    release.upgrade(filled.dsn)
    filled.execute("SELECT inturn.skip('orders', 'held', 1, 'no'), inturn.append('orders', 'late', 'insert')")
    release.downgrade(filled.dsn, revision=HEAD)
    filled.execute("CALL inturn.apply()")
    assert filled.execute("SELECT key FROM inturn.list_keys() WHERE pending > 0") == [("retrying",)]


def test_callers_and_appliers_that_are_connected_go_on_there_and_back(
    filled: Database, release: NextRelease
) -> None:
    """Their prepared statements too: no cached plan, and no call that the other revision does not know."""
    caller = filled.connect(user=CALLER, prepare_threshold=0)
    applier = filled.connect(user=APPLIER, prepare_threshold=0)
    append = "SELECT inturn.append(%s, %s, %s)"
    claim = (
        "SELECT key, applied_seq, epoch, attempt, ready_at, seq, name, payload, created_at"
        " FROM inturn.claim_commands(%s, %s, %s)"
    )
    finish = "SELECT inturn.finish(%s, %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s)"
    fail = "SELECT inturn.fail(%s, %s, %s, %s, %s, %s, %s)"

    def work() -> None:
        caller.execute(append, ("orders", "old", "insert"))
        with applier.transaction():
            rows = applier.execute(claim, ("orders", "-infinity", 50)).fetchall()
            mine = next(row for row in rows if row[0] == "old")
            applier.execute(finish, ("orders", ["old"], [mine[2]], [mine[1] + 1], [mine[5]], "old"))
        caller.execute(append, ("orders", "old", "insert"))
        with applier.transaction():
            rows = applier.execute(claim, ("orders", "-infinity", 50)).fetchall()
            mine = next(row for row in rows if row[0] == "old")
            applier.execute(fail, ("orders", "old", mine[2], mine[1] + 1, mine[5], "no", "old"))
        filled.execute("SELECT inturn.retry('orders', 'old')")
        applier.execute(
            "SELECT keys, commands, failures, redo, hand FROM inturn.apply_batch(%s, %s, %s, %s)",
            ("orders", "-infinity", 50, "old"),
        )

    work()
    release.upgrade(filled.dsn)
    work()
    release.downgrade(filled.dsn, revision=HEAD)
    work()
    assert filled.execute("SELECT applied_seq FROM inturn.list_keys() WHERE key = 'old'") == [(6,)]


def test_a_running_applier_of_the_release_before_ends_and_the_next_one_goes_on(
    witness: Database, release: NextRelease
) -> None:
    count = "SELECT count(*) FROM app.witness"
    with inturn_apply(witness.dsn, app=None) as process:
        witness.execute("SELECT inturn.append('orders', 'a', 'insert')")
        until(lambda: witness.value(count) == 1, "applied before the upgrade")
        release.upgrade(witness.dsn)
        witness.execute("SELECT inturn.append('orders', 'a', 'update')")
        assert process.exit_code() == 5
        assert f"revision {NEXT}, newer than the {HEAD}" in process.err
    witness.execute("SELECT inturn.append('orders', 'a', 'delete')")
    witness.execute("CALL inturn.apply()")
    assert witness.execute("SELECT seq FROM app.witness ORDER BY id") == [(1,), (2,), (3,)]


def test_an_older_database_is_refused_until_it_is_upgraded(database: Database, release: NextRelease) -> None:
    with pytest.raises(SchemaMismatch, match=f"revision {HEAD}, older than the {NEXT}") as refused:
        release.check_version(database.connect(user=OWNER))
    assert refused.value.hint == "Upgrade it with: inturn upgrade"
    release.upgrade(database.dsn)
    release.check_version(database.connect(user=OWNER))


def newer_database(database: Database, release: NextRelease, revision: str) -> Database:
    """The database at the next release's revision, or as a development snapshot had left it."""
    if revision == NEXT:
        release.upgrade(database.dsn)
    else:
        set_revision(database, revision)
    return database


@pytest.mark.parametrize("revision", [NEXT, SNAPSHOT])
def test_a_newer_database_is_refused_and_left_alone(
    database: Database, release: NextRelease, revision: str
) -> None:
    newer = newer_database(database, release, revision)
    before = dump(newer)
    refused_by: list[Callable[[], object]] = [
        partial(check_version, newer.connect(user=OWNER)),
        partial(upgrade, newer.dsn),
        partial(upgrade_script, from_revision=revision),
        partial(downgrade, newer.dsn),
        partial(downgrade, newer.dsn, revision=HEAD, force=True),
    ]
    for refuse in refused_by:
        with pytest.raises(SchemaMismatch, match=f"revision {revision}, newer than the {HEAD}") as refused:
            refuse()
        assert "pip install --upgrade inturn" in refused.value.hint
    assert dump(newer) == before
    assert installed_version(newer.connect(user=OWNER)) == revision


@pytest.mark.parametrize("command", ["upgrade", "upgrade --sql", "downgrade", "keys", "apply --drain"])
def test_the_command_line_refuses_the_database_of_a_development_snapshot_in_one_line(
    database: Database, release: NextRelease, command: str
) -> None:
    newer_database(database, release, SNAPSHOT)
    code, _, err = run_inturn(database.dsn, *command.split())
    assert code == 5
    assert f"is at revision {SNAPSHOT}, newer than" in err
    assert len(err.splitlines()) <= 2  # what is wrong, and what to do about it
