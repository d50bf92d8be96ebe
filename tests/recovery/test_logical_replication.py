"""Blue/green: a publication of everything, a subscription, and the switch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.database import Database
from support.moved import fill, open_witness, subscribed, switched
from support.own_server import own_database
from support.process import run_inturn
from support.roles import CALLER
from support.server import Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def blue(server: Server) -> Iterator[Database]:
    """The database to move, on a server of its own."""
    with own_database(server, extra_settings="wal_level = logical", distinct=True) as database:
        open_witness(database)
        fill(database)
        yield database


def test_every_table_of_ours_has_a_replica_identity(database: Database) -> None:
    without = database.execute("""
        SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'inturn'::regnamespace
            AND c.relkind = 'r' AND c.relpersistence = 'p' AND (c.relreplident = 'n' OR c.relreplident = 'd'
            AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))
    """)
    assert without == []


def test_callers_and_appliers_work_while_everything_is_published_and_go_on_after_the_switch(
    blue: Database, empty_database: Database, tmp_path: Path
) -> None:
    green = empty_database
    subscribed(blue, green, tmp_path)
    # A hint, which has no key, is deleted; a turn, a ticket and marks come and go.
    with blue.connect(user=CALLER, autocommit=False) as caller:
        caller.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        caller.execute("SELECT inturn.append('orders', 'hinted', 'insert')")
    blue.execute("CALL inturn.apply('{orders}', max_seconds => 1)")
    blue.execute("SELECT inturn.append('posts', 'late', 'p1')")
    switched(blue, green)
    counts = "SELECT count(*), max(id) FROM inturn.intake"
    assert green.execute(counts) == blue.execute(counts)
    green.execute("SELECT inturn.append('posts', 'late', 'p2')")
    (last,) = green.execute("SELECT id FROM inturn.intake WHERE name = 'p2' AND key = 'late'")[0]
    assert last > blue.value("SELECT max(id) FROM inturn.intake")
    green.execute("CALL inturn.apply()")
    late = "SELECT name FROM app.witness WHERE key = 'late' ORDER BY id"
    assert green.execute(late) == [("p1",), ("p2",)]
    assert green.value("SELECT count(*) FROM inturn.intake") == 0
    assert run_inturn(green.dsn, "verify")[0] == 0
    for action in (
        "SELECT inturn.replay('orders', 'done', 1, 'once more')",
        "SELECT inturn.skip('orders', 'bad', 1, 'will not do')",
        "SELECT inturn.append('orders', 'hinted', 'delete')",
    ):
        green.execute(action)
    green.execute("CALL inturn.apply()")
    assert run_inturn(green.dsn, "verify")[0] == 0


def test_without_its_trigger_what_arrives_after_the_switch_comes_before_what_had_arrived(
    database: Database,
) -> None:
    """What the trigger of the intake is for: a row that a subscription writes lifts the sequence."""
    database.execute("SELECT inturn.create_topic('posts', numbering => 'arrival')")
    row = "INSERT INTO inturn.intake (topic, key, id, xid, name, payload) OVERRIDING SYSTEM VALUE VALUES"
    above = "SELECT id > 700 FROM inturn.intake WHERE name = 'later'"
    for without, follows in ((True, False), (False, True)):
        database.execute("TRUNCATE inturn.intake RESTART IDENTITY")
        able = "DISABLE TRIGGER" if without else "ENABLE REPLICA TRIGGER"
        database.execute(f"ALTER TABLE inturn.intake {able} take_replicated")
        database.execute(
            "SET session_replication_role = replica;"
            f" {row} ('posts', 'a', 700, '9000000000', 'earlier', '{{}}'); RESET session_replication_role"
        )
        database.execute("SELECT inturn.append('posts', 'a', 'later')")
        assert database.value(above) is follows
    numbered = "SELECT name FROM inturn.command_log WHERE topic = 'posts' ORDER BY seq"
    database.execute("SELECT inturn._number_arrivals('{posts}')")
    assert database.execute(numbered) == [("earlier",), ("later",)]


def test_what_a_subscription_brings_back_to_a_server_that_numbered_before_is_numbered(
    database: Database,
) -> None:
    """Back to blue: its passes have seen higher transaction ids than green's rows have."""
    database.execute("SELECT inturn.create_topic('posts', numbering => 'arrival')")
    database.execute("SELECT inturn.append('posts', 'a', 'first')")
    assert database.value("SELECT inturn._number_arrivals('{posts}')") == 1
    database.execute("""
        SET session_replication_role = replica;
        INSERT INTO inturn.intake (topic, key, id, xid, name, payload) OVERRIDING SYSTEM VALUE
        VALUES ('posts', 'a', 50, '3', 'second', '{}');
        RESET session_replication_role
    """)
    assert database.value("SELECT inturn._number_arrivals('{posts}')") == 1
    assert database.value("SELECT name FROM inturn.command_log WHERE seq = 2") == "second"
