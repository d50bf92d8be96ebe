"""append stays on its indexes, whatever the planner believes about the tables."""

from __future__ import annotations

import pytest
from support.database import Database
from support.roles import CALLER, OWNER

TABLES = ("topic", "command_log", "key_sequence", "turn", "ticket", "listener")
ROWS = 100_000


def seq_scans(database: Database) -> dict[str, int]:
    rows = database.execute("SELECT relname, seq_scan FROM pg_stat_user_tables WHERE schemaname = 'inturn'")
    return {name: scans for name, scans in rows if name in TABLES}


@pytest.fixture
def orders(database: Database) -> Database:
    """The database with topic `orders`, where nothing is analysed behind the test's back."""
    database.execute("SELECT inturn.create_topic('orders')")
    for table in TABLES:
        database.execute(f"ALTER TABLE inturn.{table} SET (autovacuum_enabled = off)")
    # What it asks for is done all the same, and counts as a sequential scan a range.
    database.execute("ALTER INDEX inturn.turn_finished SET (autosummarize = off)")
    return database


def fill(database: Database) -> None:
    """Put many idle and one deep key there, as if appliers had drained all but the deep one."""
    database.execute(f"""
        INSERT INTO inturn.command_log (topic, key, seq, name, payload)
        SELECT 'orders', 'deep', n, 'n', '{{}}' FROM generate_series(1, {ROWS}) n;
        INSERT INTO inturn.key_sequence (topic, key)
        SELECT 'orders', 'k' || n FROM generate_series(1, {ROWS}) n UNION ALL SELECT 'orders', 'deep';
        INSERT INTO inturn.turn
            (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier, started_at)
        SELECT 'orders', 'k' || n, 1, 1, 7, 7, true, 'applied', 'test', now()
        FROM generate_series(1, {ROWS}) n;
        INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at)
        VALUES ('orders', 'deep', 0, 0, now());
    """)


def test_plans_made_on_small_tables_stay_on_indexes_when_the_tables_are_large(
    orders: Database,
) -> None:
    if orders.server.version < 15:
        pytest.skip("PostgreSQL 14 does not flush its counters on demand")
    caller = orders.connect(user=CALLER)

    def append_everywhere(key: str, first: int) -> None:
        for n in range(8):
            append = "SELECT inturn.append('orders', %s, 'x', '{}', %s)"
            row = caller.execute(append, [key, None if n % 2 else f"{key} {first + n}"]).fetchone()
            assert row == (first + n,)
        caller.execute("SELECT inturn.append_many('orders', %s, %s)", [[f"{key} m"], ["x"]])
        caller.execute(
            "INSERT INTO inturn.outbox (topic, key, name) VALUES ('orders', %s, 'x')", [f"{key} o"]
        )

    # Plans are cached, generic ones among them, while all the statistics speak for reading a table
    # from end to end.
    append_everywhere("warm", 1)
    orders.execute("ANALYZE")
    append_everywhere("warm", 9)
    fill(orders)
    for connection in (caller, orders.connect(user=OWNER)):
        connection.execute("SELECT pg_stat_force_next_flush()")
        connection.execute("SELECT")
    orders.execute("SELECT pg_stat_force_next_flush()")
    orders.execute("SELECT")
    before = seq_scans(orders)
    append_everywhere("new", 1)
    append_everywhere("k77", 8)
    append_everywhere("deep", ROWS + 1)
    caller.execute("SELECT pg_stat_force_next_flush()")
    caller.execute("SELECT")
    assert seq_scans(orders) == before
    caller.close()
