"""server_metrics: the oldest snapshot, whoever of four kinds holds it, until it is let go."""

from __future__ import annotations

import pytest
from support.database import Database, Session, until
from support.moved import CopiedServer
from support.own_server import own_database
from support.server import Server

pytestmark = pytest.mark.server

HOLDERS = ("session", "prepared", "slot", "standby")
_SERVER = "max_prepared_transactions = 2\nwal_level = logical\n"
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


def test_the_oldest_snapshot_is_found_whoever_holds_it(server: Server) -> None:
    with own_database(server, extra_settings=_SERVER) as database:
        session = database.session()
        take_snapshot(session)
        check_held_by(database, "session")
        session.rollback()
        check_let_go(database)

        session.execute("SELECT pg_current_xact_id()")
        session.execute("PREPARE TRANSACTION 'x'")
        check_held_by(database, "prepared")
        database.execute("ROLLBACK PREPARED 'x'")
        check_let_go(database)

        database.administer("SELECT pg_create_logical_replication_slot('stale', 'pgoutput')")
        check_held_by(database, "slot")
        database.administer("SELECT pg_drop_replication_slot('stale')")
        check_let_go(database)
        _check_standby(database)


def _check_standby(database: Database) -> None:
    conninfo = database.server.dsn(user="postgres").replace("dbname=postgres", "").replace("'", "")
    standby = CopiedServer(database.server, "standby", extra_settings=_STANDBY.format(conninfo=conninfo))
    try:
        standby.start()
        with standby.connect(database.name) as report:
            report.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            report.execute("SELECT count(*) FROM pg_class")
            check_held_by(database, "standby")
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
