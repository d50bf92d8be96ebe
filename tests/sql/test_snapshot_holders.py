"""server_metrics: the oldest snapshot, whoever holds it, until it is let go; and doctor says who that is."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg
import pytest
from psycopg.pq import ExecStatus
from support.database import Database, Session, until
from support.moved import CopiedServer
from support.own_server import own_database
from support.roles import ADMINISTRATOR
from support.server import Server

from inturn.cli import database as cli_database
from inturn.cli.doctor import sessions
from inturn.cli.doctor.finding import Facts

pytestmark = pytest.mark.server

HOLDERS = ("session", "prepared", "slot", "standby")
_SERVER = """
max_prepared_transactions = 2
wal_level = logical
max_slot_wal_keep_size = 1MB
autovacuum_naptime = 1h
"""
#: Of the standby: it says at once which snapshots it needs.
_STANDBY = """
primary_conninfo = '{conninfo} application_name=standby'
hot_standby_feedback = on
wal_receiver_status_interval = 1
"""
#: How many transactions pass beside each holder.
PASSED = 50


def ages(database: Database) -> dict[tuple[str, str], float]:
    """Return the age of each holder's oldest snapshot, in transactions and in seconds."""
    rows = database.execute("""
        SELECT m.labels->>'holder', replace(m.metric, 'inturn_oldest_snapshot_age_', ''), m.value
        FROM inturn.server_metrics() m WHERE m.metric LIKE 'inturn_oldest_snapshot_age_%'
    """)
    return {(holder, unit): value for holder, unit, value in rows}


def transactions(database: Database) -> dict[str, float]:
    found = ages(database)
    return {holder: found[holder, "transactions"] for holder in HOLDERS}


def pass_transactions(database: Database) -> None:
    database.administer(
        f"DO $$ BEGIN FOR i IN 1..{PASSED} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
    )


def take_snapshot(session: Session) -> None:
    session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    session.execute("SELECT count(*) FROM pg_class")


def check_held_by(database: Database, holder: str) -> None:
    """Make sure that it is this holder alone whose snapshot ages with the transactions that pass."""
    pass_transactions(database)
    others = set(HOLDERS) - {holder}

    def is_seen() -> bool:
        # Looking and the server's own work may take a snapshot, for a moment.
        found = transactions(database)
        return found[holder] >= PASSED and all(found[other] < PASSED for other in others)

    until(is_seen, f"the snapshot of the {holder} alone is old")


def check_let_go(database: Database) -> None:
    until(lambda: all(age < PASSED for age in transactions(database).values()), "no old snapshot")


@pytest.fixture
def watched(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database on a server of its own, on which nobody else holds anything."""
    monkeypatch.setattr(sessions, "SLOT_TRANSACTIONS", PASSED // 2)
    with own_database(server, extra_settings=_SERVER) as database:
        yield database


def named(database: Database) -> str:
    """Return what doctor says of whoever holds a snapshot."""
    with cli_database.Database(database.dsn).connect(check=False) as connection:
        facts = Facts(connection, "inturn", 0.0)
        checks = (
            *(sessions.long_transactions, sessions.prepared_transactions),
            *(sessions.replication_slots, sessions.standbys),
        )
        return "\n".join(finding.says for check in checks for finding in check(facts))


def test_the_oldest_snapshot_is_found_whoever_holds_it(watched: Database) -> None:
    session = watched.session()
    take_snapshot(session)
    check_held_by(watched, "session")
    assert f"backend {session.pid} of" in named(watched)
    session.rollback()
    check_let_go(watched)

    session.execute("SELECT pg_current_xact_id()")
    session.execute("PREPARE TRANSACTION 'x'")
    check_held_by(watched, "prepared")
    assert "the transaction 'x' of" in named(watched)
    watched.execute("ROLLBACK PREPARED 'x'")
    check_let_go(watched)

    watched.administer("SELECT pg_create_logical_replication_slot('stale', 'pgoutput')")
    check_held_by(watched, "slot")
    assert "the replication slot stale keeps" in named(watched)
    # A slot that has lost its WAL keeps nothing any more.
    until(lambda: _is_lost(watched, "stale"), "the slot is lost")
    check_let_go(watched)
    assert named(watched) == ""
    watched.administer("SELECT pg_drop_replication_slot('stale')")
    _check_standby(watched)


def _is_lost(database: Database, slot: str) -> bool:
    database.administer("SELECT pg_logical_emit_message(false, 'inturn', repeat('x', 2000000))")
    database.administer("SELECT pg_switch_wal()")
    database.administer("CHECKPOINT")
    is_lost: bool = database.value(
        "SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = %s", [slot]
    )
    return is_lost


@contextmanager
def _elsewhere(database: Database, *statements: str) -> Iterator[psycopg.Connection[object]]:
    """Give a transaction of another database of the server."""
    with database.server.connect() as other:
        for statement in ("BEGIN ISOLATION LEVEL REPEATABLE READ", *statements):
            other.execute(statement.encode())
        yield other


def test_of_another_database_what_has_written_holds_snapshots_too(watched: Database) -> None:
    """No snapshot here is newer than it; one that only reads keeps nothing here."""
    with _elsewhere(watched, "SELECT count(*) FROM pg_class"):
        pass_transactions(watched)
        check_let_go(watched)
        assert named(watched) == ""
    with _elsewhere(watched, "SELECT pg_current_xact_id()"):
        check_held_by(watched, "session")
        said = named(watched)
        assert re.search(r"backend .* of database postgres\. Dead rows are kept for its snapshot$", said)
    with _elsewhere(watched, "SELECT pg_current_xact_id()", "PREPARE TRANSACTION 'there'") as other:
        check_held_by(watched, "prepared")
        assert "of database postgres is prepared for" in named(watched)
        other.execute("ROLLBACK PREPARED 'there'")
    check_let_go(watched)


def test_whoever_copies_tables_for_logical_replication_holds_a_snapshot(watched: Database) -> None:
    """As a subscription does at first; that is a session of this database, and no client's."""
    dsn = watched.server.dsn(
        watched.name, user="postgres", application_name=ADMINISTRATOR, replication="database"
    )
    with psycopg.connect(dsn, autocommit=True) as copying:
        slot = b"CREATE_REPLICATION_SLOT copying TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT"
        # The driver's own way is not for a session that replicates.
        assert copying.pgconn.exec_(slot).status == ExecStatus.TUPLES_OK
        pass_transactions(watched)
        until(lambda: transactions(watched)["session"] >= PASSED, "its snapshot is old")
        assert transactions(watched)["standby"] == 0
        assert "the replication slot copying keeps" in named(watched)  # it has no transaction of its own
    check_let_go(watched)


def test_nothing_is_kept_for_a_vacuum_however_long_it_takes(watched: Database) -> None:
    watched.administer("CREATE TABLE large AS SELECT repeat('x', 500) AS t FROM generate_series(1, 5000)")
    with watched.server.connect(watched.name) as long:
        long.execute("SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1")

        def vacuum() -> None:
            with suppress(psycopg.errors.QueryCanceled):
                long.execute("VACUUM large")

        vacuuming = threading.Thread(target=vacuum)
        vacuuming.start()
        try:
            seen = "SELECT count(*) FROM pg_stat_progress_vacuum"
            until(lambda: watched.value(seen), "it is at work")
            pass_transactions(watched)
            until(lambda: transactions(watched)["session"] < PASSED, "no old snapshot")
            assert named(watched) == ""
            assert watched.value(seen) == 1
        finally:
            long.cancel_safe()
            vacuuming.join()


def _check_standby(database: Database) -> None:
    conninfo = database.server.dsn(user="postgres").replace("dbname=postgres", "").replace("'", "")
    standby = CopiedServer(database.server, "standby", extra_settings=_STANDBY.format(conninfo=conninfo))
    try:
        standby.start()
        with standby.connect(database.name) as report:
            report.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            report.execute("SELECT count(*) FROM pg_class")
            check_held_by(database, "standby")
            assert "the standby standby keeps" in named(database)
        check_let_go(database)
    finally:
        standby.remove()


def test_times_are_those_of_the_transactions_that_hold_a_snapshot(database: Database) -> None:
    """Of sessions and prepared transactions; slots and standbys have none."""
    session = database.session()
    began_at = database.value("SELECT extract(epoch FROM clock_timestamp())::float8")
    take_snapshot(session)
    holds_from = session.execute(
        "SELECT extract(epoch FROM xact_start)::float8 FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    )[0][0]
    asked_at = database.value("SELECT extract(epoch FROM clock_timestamp())::float8")
    found = ages(database)
    ended_at = database.value("SELECT extract(epoch FROM clock_timestamp())::float8")
    assert {holder for holder, unit in found if unit == "seconds"} == {"session", "prepared"}
    assert began_at <= holds_from
    assert asked_at - holds_from <= found["session", "seconds"] <= ended_at - holds_from
