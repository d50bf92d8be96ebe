"""Upgrading without a stop: from today's release to the made-up next one, with real processes at work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from support.b_server import TOPIC as OUTSIDE
from support.b_server import open_topic, put, state
from support.database import Database, until
from support.dump import dump
from support.next_release import NEXT, NextRelease
from support.process import InturnProcess, inturn_apply, run_inturn
from support.roles import OWNER
from support.shop import TOPIC, applied, assert_once_and_in_turn, open_shop

from inturn.applier import Applier, Command, Fleet
from inturn.applier.process.chooser import Chooser
from inturn.outbox import append
from inturn.schema import locks
from inturn.schema.errors import SchemaInUse, SchemaMismatch
from inturn.schema.install import upgrade
from inturn.schema.source import changed_tables
from inturn.schema.version import HEAD, check_version

#: For processes at work on a busy machine.
PATIENCE = 120.0
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def compatible(tmp_path: Path) -> NextRelease:
    return NextRelease(tmp_path, compatible=True)


@pytest.fixture
def breaking(tmp_path: Path) -> NextRelease:
    return NextRelease(tmp_path)


class Callers:
    """Callers on connections of their own that stay, each append in a transaction with business of theirs."""

    def __init__(self, database: Database) -> None:
        database.execute("CREATE TABLE app.sale (key text, seq bigint)")
        self._dsn = database.caller_dsn
        self._over = threading.Event()
        self.appended = [0, 0, 0]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Append while the block runs; what a caller was refused is raised at its end."""
        with ThreadPoolExecutor(3) as threads:
            calls = [
                threads.submit(self._in_sql, 0),
                threads.submit(self._in_sql, 1),
                threads.submit(self._pooled, 2),
            ]
            try:
                yield
            finally:
                self._over.set()
            for call in calls:
                call.result(PATIENCE)

    def _in_sql(self, number: int) -> None:
        """Append by statements that the server has prepared, with cached plans."""
        with psycopg.connect(self._dsn, prepare_threshold=0) as connection:
            while not self._over.wait(0.02):
                with connection.transaction():
                    key = f"k{number}-{self.appended[number] % 3}"
                    row = connection.execute(
                        "SELECT inturn.append(%s, %s, 'insert')", (TOPIC, key), prepare=True
                    ).fetchone()
                    assert row is not None
                    connection.execute("INSERT INTO app.sale VALUES (%s, %s)", (key, row[0]))
                self.appended[number] += 1

    def _pooled(self, number: int) -> None:
        """Append by the library, on the connections of SQLAlchemy's pool."""
        engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(self._dsn))
        while not self._over.wait(0.02):
            with engine.begin() as connection:
                key = f"k{number}-{self.appended[number] % 3}"
                seq = append(connection, TOPIC, key, "insert")
                connection.exec_driver_sql("INSERT INTO app.sale VALUES (%s, %s)", (key, seq))
            self.appended[number] += 1
        engine.dispose()


def _turns_since(database: Database, process: InturnProcess, since: Any) -> bool:
    """Whether an applier of the process has taken a turn that began after a time."""
    query = "SELECT FROM inturn.turn WHERE applier LIKE %s AND started_at > %s LIMIT 1"
    return bool(database.execute(query, [f"%:{process.pid}-%", since]))


def test_an_applier_started_after_a_compatible_upgrade_serves_it_and_is_seen_to(
    database: Database, compatible: NextRelease
) -> None:
    open_shop(database)
    compatible.upgrade(database.dsn)
    check_version(database.connect(user=OWNER))
    _, said, _ = run_inturn(database.dsn, "doctor")
    assert f"warning revision: schema inturn is at revision {NEXT}, newer than this inturn's {HEAD}" in said
    assert "privilege" not in said.replace("its doctor examines privileges", "")
    with inturn_apply(database.dsn) as process:
        database.execute("SELECT inturn.append(%s, 'a', 'insert')", [TOPIC])
        until(lambda: applied(database, "a") == [1], "applied")
        assert database.execute(
            "SELECT DISTINCT alive, inturn._fits(revision) FROM inturn.list_appliers() WHERE pid = %s",
            [process.pid],
        ) == [(True, True)]


def test_appliers_stop_cleanly_at_an_upgrade_that_is_not_compatible(
    database: Database, breaking: NextRelease
) -> None:
    open_shop(database)
    callers = Callers(database)
    with callers.at_work(), inturn_apply(database.dsn) as process:
        began_at = database.value("SELECT clock_timestamp()")
        until(lambda: _turns_since(database, process, began_at), "at work", PATIENCE)
        breaking.upgrade(database.dsn)
        assert process.exit_code(PATIENCE) == 5
        assert f"revision {NEXT}, newer than the {HEAD}" in process.err
        assert "Traceback" not in process.err
        counted = list(callers.appended)
        until(
            lambda: all(now > then for now, then in zip(callers.appended, counted, strict=True)),
            "callers go on",
            PATIENCE,
        )
    database.execute("SELECT inturn.set_topic(%s, target => 'sql:app.apply')", [TOPIC])
    until(
        lambda: (
            database.execute("CALL inturn.apply()")
            or not database.value("SELECT EXISTS (SELECT FROM inturn.ticket)")
        ),
        "drained",
        PATIENCE,
    )
    assert_once_and_in_turn(database)


def test_a_lease_is_given_back_by_an_applier_that_stops_so(
    database: Database, breaking: NextRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The worker in the database's transactions does not look: who works outside sees the revision itself.
    monkeypatch.setattr(Chooser, "inside", lambda *_, **__: [])
    entered, gate, handlers = threading.Event(), threading.Event(), Applier()

    def wait(command: Command) -> None:
        entered.set()
        assert gate.wait(PATIENCE)

    handlers.handler(OUTSIDE, outside=True)(wait)
    open_topic(database, "python")
    put(database, "a", "first", "second")
    fleet = Fleet(database.applier_dsn, handlers)
    fleet.start()
    try:
        assert entered.wait(PATIENCE)
        assert state(database, "a")[0] == "leased"
        breaking.upgrade(database.dsn)
        until(lambda: fleet.stop.requested, "it has seen the revision", PATIENCE)
        gate.set()
        assert fleet.wait(PATIENCE)
    finally:
        gate.set()
        outcome = fleet.end(PATIENCE)
    assert isinstance(outcome.error, SchemaMismatch)
    # The command in hand was recorded, and the lease did not have to run out: nothing failed.
    assert state(database, "a")[0] == "ready"
    assert database.execute("SELECT applied_seq, attempts, lease_until FROM inturn.key_cursor") == [
        (1, 0, None)
    ]


def _waits_for_a_table(database: Database) -> bool:
    return bool(
        database.value(
            "SELECT EXISTS (SELECT FROM pg_locks l WHERE NOT l.granted AND l.mode = 'AccessExclusiveLock'"
            " AND l.relation = 'inturn.topic'::regclass)"
        )
    )


def test_nobody_queues_behind_an_upgrade_that_waits_for_a_transaction(
    database: Database, compatible: NextRelease
) -> None:
    open_shop(database)
    holder, caller = database.session(), database.session(autocommit=True)
    call = "SELECT inturn.append(%s, %s, 'insert')"
    holder.execute(call, [TOPIC, "a"])
    with database.beside(lambda: compatible.upgrade(database.dsn)) as upgraded:
        for number in range(3):
            until(lambda: _waits_for_a_table(database), "the upgrade waits")
            # The holder has not committed, so this returns only if the upgrade stands aside.
            caller.begin(call, [TOPIC, f"b{number}"]).result(PATIENCE)
        assert not upgraded.done()
        holder.commit()
        assert upgraded.result(PATIENCE) == (HEAD, NEXT)
    assert database.value("SELECT count(*) FROM inturn.command_log") == 4
    assert database.value("SHOW lock_timeout") == "0"


def test_an_upgrade_that_never_gets_its_locks_says_who_has_them_and_changes_nothing(
    database: Database, compatible: NextRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_shop(database)
    before = dump(database)
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    holder = database.session(application_name="reports")
    holder.execute("SELECT FROM inturn.topic")
    with pytest.raises(SchemaInUse, match=rf"the longest by backend {holder.pid} \(reports\)"):
        compatible.upgrade(database.dsn)
    holder.rollback()
    assert dump(database) == before
    assert compatible.upgrade(database.dsn) == (HEAD, NEXT)


def test_its_script_does_not_queue_for_long_either(database: Database, compatible: NextRelease) -> None:
    script = compatible.script(from_revision=HEAD)
    assert "LOCK TABLE inturn.topic IN ACCESS EXCLUSIVE MODE;" in script
    holder = database.session()
    holder.execute("SELECT FROM inturn.topic")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        database.connect(user=OWNER).execute(script.encode())
    holder.rollback()
    database.connect(user=OWNER).execute(script.encode())
    assert upgrade(database.dsn) == (NEXT, NEXT)


def test_what_is_changed_is_locked_in_one_order_and_what_is_new_is_not() -> None:
    assert changed_tables(
        "ALTER TABLE inturn.turn ADD COLUMN a text;\nCREATE INDEX ON inturn.command_log (key);\n"
        "CREATE TABLE inturn.shelf (name text);\nALTER TABLE inturn.shelf ADD CHECK (true);\n"
        "CREATE UNIQUE INDEX b\n    ON inturn.key_sequence (key);\nALTER TABLE inturn.topic DROP COLUMN c;\n"
        "DROP TABLE inturn.skip;\nCREATE OR REPLACE FUNCTION inturn.append() RETURNS void;"
    ) == ["topic", "key_sequence", "command_log", "skip", "turn"]
