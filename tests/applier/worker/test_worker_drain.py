"""A drain goes on for suspects that were put off, one after the other, and does not wait for retries."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from support.b_server import TOPIC, B, apply_all, is_applied, open_topic, put, put_keys
from support.database import Database
from support.roles import OWNER

from inturn.applier import Applier, Command, Fleet
from inturn.applier.breaker import TargetDown
from inturn.schema.errors import OwnerChanged

KEYS = 38
#: Asks for what is ready already too, so that no test depends on how fast it is; the drain began long ago.
NEXT = "SELECT due IS NOT NULL FROM inturn._next_suspect(ARRAY['posts'], '-infinity', '-infinity')"
#: What has become of keys before the drain, by what they are.
BEFORE = {
    "fresh": "SELECT",
    "had failed, then lost": "UPDATE inturn.key_mark SET attempts = 1,"
    " failed_at = claimed_at - interval '1 s'",
    "lost alone, and due": "UPDATE inturn.key_mark SET attempts = 1, failed_at = now(), lost = 1,"
    " claimed_by = NULL, claimed_at = NULL, lease_until = NULL",
}


def _die_with(database: Database, keys: int) -> None:
    """Have another process take these keys by lease, and be gone until its leases have run out."""
    put_keys(database, keys)
    taken = database.value(
        "SELECT count(*) FROM inturn.claim(ARRAY['posts'], 100, NULL, 'dead:1:1')",
    )
    assert taken == keys
    database.execute("UPDATE inturn.key_cursor SET lease_until = now(), ready_at = now()")


def _suspect(database: Database) -> None:
    """Make one key that was lost, and that is ready."""
    _die_with(database, 1)
    database.execute(
        "UPDATE inturn.key_mark SET lost = 1, claimed_by = NULL, claimed_at = NULL, lease_until = NULL"
    )
    assert database.value(NEXT)


def _plain(_: Command) -> None: ...


async def _coroutine(_: Command) -> None: ...


def _inside(_connection: psycopg.Connection[Any], _command: Command) -> None: ...


@pytest.mark.each_value
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("way", ["plain", "async def", "inside", "http"])
def test_one_drain_applies_every_suspect(database: Database, way: str, before: str) -> None:
    """A run of a cron job after a process died with many healthy keys in flight."""
    handlers = Applier()
    if way == "inside":
        handlers.handler(TOPIC)(_inside)
    elif way == "plain":
        handlers.handler(TOPIC, outside=True)(_plain)
    elif way == "async def":
        handlers.handler(TOPIC, outside=True)(_coroutine)
    with B() as b:
        open_topic(database, b.url if way == "http" else "python")
        _die_with(database, KEYS)
        database.execute(BEFORE[before])
        workers = 2 if way == "inside" else 1
        assert apply_all(database, handlers, workers=workers).commands == KEYS
    assert is_applied(database)
    lost = database.value("SELECT count(*) FROM inturn.turn WHERE outcome = 'lost'")
    assert lost == (0 if before == "lost alone, and due" else KEYS)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE inturn.key_mark SET attempts = 1, failed_at = now()",
        "UPDATE inturn.key_mark SET lost = 0",
        "UPDATE inturn.key_mark SET claimed_by = 'host:2:1', lease_until = now() + interval '1 hour'",
        "UPDATE inturn.key_mark SET held_at = now()",
        "UPDATE inturn.key_mark SET paused_at = now()",
        "UPDATE inturn.key_mark SET waiting_at = now()",
        "SELECT inturn.pause_topic('posts', 'a reason')",
        "UPDATE inturn.ticket SET ready_at = now() + interval '1 hour'",
    ],
)
def test_a_drain_does_not_wait_for(database: Database, change: str) -> None:
    open_topic(database, "python")
    _suspect(database)
    database.execute(change)
    assert not database.value(NEXT)


def test_a_drain_does_not_wait_for_what_was_there_before_its_last_look(database: Database) -> None:
    """Somebody else has it in hand: an operator, or a transaction that hangs."""
    open_topic(database, "python")
    handlers = Applier()
    handlers.handler(TOPIC, outside=True)(_plain)
    _suspect(database)
    hands = database.session()
    hands.execute("SELECT FROM inturn.ticket FOR UPDATE")
    assert apply_all(database, handlers).commands == 0
    hands.rollback()
    assert apply_all(database, handlers).commands == 1


def test_a_look_for_suspects_reads_nothing_of_held_keys_and_of_dead_tickets(database: Database) -> None:
    open_topic(database, "python")
    _die_with(database, 100)
    put_keys(database, 2000)
    report = database.session()
    report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    report.execute("SELECT count(*) FROM inturn.ticket")
    database.execute("UPDATE inturn.key_cursor SET held_at = now(), ready_at = NULL")
    looked_at = database.value("SELECT clock_timestamp()")
    connection = database.connect(user=OWNER, autocommit=False)
    counters = (
        "SELECT pg_stat_get_xact_tuples_returned('inturn.ticket_ready'::regclass)"
        " + pg_stat_get_xact_tuples_returned('inturn.key_mark_pkey'::regclass)"
    )

    def read(statement: str, *parameters: object) -> Any:
        row = connection.execute(statement, parameters).fetchone()
        assert row is not None
        return row[0]

    before = read(counters)
    assert read("SELECT due FROM inturn._next_suspect(ARRAY['posts'], %s, now())", looked_at) is None
    assert read(counters) == before
    assert read("SELECT due FROM inturn._next_suspect(ARRAY['posts'], NULL, now())") is None
    assert read(counters) == before
    # What earlier turns left is there, and is walked over by who begins before it.
    assert read("SELECT due FROM inturn._next_suspect(ARRAY['posts'], '-infinity', now())") is None
    assert read(counters) - before >= 2000


def test_a_drain_of_suspects_leaves_a_dead_service_and_says_so(database: Database) -> None:
    with B() as dead:
        url = dead.url
    open_topic(database, url, "max_attempts => 100")
    _die_with(database, KEYS)
    fleet = Fleet(database.applier_dsn, Applier(), drain=True)
    fleet.start()
    assert fleet.wait(60)
    assert isinstance(fleet.end(0).error, TargetDown)


def test_a_suspect_that_is_put_off_while_a_worker_ends_its_drain_is_applied(database: Database) -> None:
    """By another worker of its process, which has a key by lease of its own."""
    open_topic(database, "python")
    _suspect(database)
    database.execute("UPDATE inturn.ticket SET ready_at = 'infinity'")
    put(database, "last", "insert")
    handlers = Applier()

    @handlers.handler(TOPIC)
    def put_off(_: psycopg.Connection[Any], command: Command) -> None:
        if command.key == "last":
            database.execute(
                "UPDATE inturn.ticket SET ready_at = clock_timestamp() + interval '100 ms' WHERE key = 'k1'"
            )

    assert apply_all(database, handlers).commands == 2


def test_a_stop_ends_a_drain_that_waits_for_suspects(database: Database) -> None:
    """Without a stop it would go on for as long as they are put off."""
    open_topic(database, "python")
    _die_with(database, 3)
    stopped = threading.Event()
    handlers = Applier()

    @handlers.handler(TOPIC, outside=True)
    def stop(_: Command) -> None:
        fleet.request_stop()
        stopped.set()

    fleet = Fleet(database.applier_dsn, handlers, drain=True)
    fleet.start()
    assert fleet.wait(60)
    assert stopped.is_set()
    assert fleet.end(0).commands < 3


def test_a_drain_does_not_wait_for_the_next_attempts_of_a_suspect(database: Database) -> None:
    """However short its backoff is: or it would end with the last attempt."""
    open_topic(database, "python", "backoff_base => '10 ms', backoff_cap => '10 ms', max_attempts => 1000")
    _die_with(database, 1)
    handlers = Applier()

    @handlers.handler(TOPIC, outside=True)
    def fail(_: Command) -> None:
        raise ValueError

    assert 0 < apply_all(database, handlers).failures < 1000


def test_a_key_whose_lease_has_run_out_is_a_suspect_before_anybody_says_so(database: Database) -> None:
    """A claim alone puts it off as it is."""
    open_topic(database, "python")
    _die_with(database, 1)
    assert database.value(NEXT)


def test_a_drain_does_not_fail_for_a_topic_that_was_put_right_and_drained_meanwhile(
    database: Database,
) -> None:
    """Its target belonged to somebody else, when the drain looked first; it says so where keys are left."""
    database.execute("""
        CREATE SCHEMA app; GRANT USAGE ON SCHEMA app TO PUBLIC;
        CREATE FUNCTION app.apply(command inturn.command) RETURNS void LANGUAGE sql AS 'SELECT';
        SELECT inturn.create_topic('refused', 'sql:app.apply'), inturn.create_topic('inside', 'python');
    """)
    is_mine = "UPDATE inturn.topic SET target_owner_id = %s WHERE name = 'refused'"
    owner = database.value("SELECT target_owner_id FROM inturn.topic WHERE name = 'refused'")

    def drain(meanwhile: Callable[[], object]) -> Exception | None:
        database.execute(is_mine, [None])
        database.execute("SELECT inturn.append('refused', 'a', 'do')")
        database.execute("SELECT inturn.append('inside', 'b', 'do')")
        applier = Applier()
        applier.handler("inside")(lambda _connection, _command: meanwhile() and None)
        fleet = Fleet(database.applier_dsn, applier, drain=True)
        fleet.start()
        assert fleet.wait(60)
        return fleet.end(1).error

    def put_right() -> None:
        database.execute(is_mine, [owner])
        database.execute("CALL inturn.apply(ARRAY['refused'])")

    assert isinstance(drain(lambda: None), OwnerChanged)
    assert drain(put_right) is None
