"""P5: a held, slow or deep key costs the others nothing; a claim's cost does not grow with them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import psycopg
import pytest
from support.database import Database, until
from support.plans import believe, buffers, explain, nodes, query_of_claim
from support.roles import APPLIER, OWNER
from support.server import Server
from support.shop import (
    append,
    append_keys,
    applied,
    apply_all,
    at_work,
    count_applied,
    gate_shut,
    open_shop,
    wait_at_gate,
)

LIVE = 50
IDLE, HELD, WAITING, DEPTH = 100_000, 1_000, 10_000, 100_000

# Written straight into the tables, as the protocol leaves them: appended one by one it takes a minute.
_CROWD = """
    INSERT INTO inturn.command_log (topic, key, seq, name, payload)
    SELECT 'shop', 'idle' || n, 1, 'insert', jsonb '{}' FROM generate_series(1, {idle}) n
    UNION ALL SELECT 'shop', 'held' || n, 1, 'fail', '{}' FROM generate_series(1, {held}) n
    UNION ALL SELECT 'shop', 'waiting' || n, 1, 'fail', '{}' FROM generate_series(1, {waiting}) n
    UNION ALL SELECT 'shop', 'deep', n, 'insert', '{}' FROM generate_series(1, {depth}) n;
    INSERT INTO inturn.key_sequence (topic, key)
    SELECT DISTINCT topic, key FROM inturn.command_log;
    INSERT INTO inturn.turn
        (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier, started_at)
    SELECT 'shop', 'idle' || n, 1, 1, 1, 1, true, 'applied', 'crowd', now() FROM generate_series(1, {idle}) n
    UNION ALL SELECT 'shop', 'held' || n, 5, 1, 0, 0, false, 'held', 'crowd', now()
        FROM generate_series(1, {held}) n
    UNION ALL SELECT 'shop', 'waiting' || n, 1, 1, 0, 0, false, 'retrying', 'crowd', now()
        FROM generate_series(1, {waiting}) n;
    INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at, marked)
    SELECT 'shop', 'held' || n, 5, 0, timestamptz 'infinity', true FROM generate_series(1, {held}) n
    UNION ALL SELECT 'shop', 'waiting' || n, 1, 0, now() + interval '1 hour', true
        FROM generate_series(1, {waiting}) n
    UNION ALL SELECT 'shop', 'deep', 0, 0, now(), false;
    INSERT INTO inturn.key_mark (topic, key, epoch, attempts, last_error, failed_at, held_at)
    SELECT 'shop', 'held' || n, 5, 5, 'no', now(), now() FROM generate_series(1, {held}) n
    UNION ALL SELECT 'shop', 'waiting' || n, 1, 1, 'no', now(), NULL FROM generate_series(1, {waiting}) n;
"""
_OURS = ("command_log", "key_sequence", "ticket", "key_mark", "turn")
#: What the planner may believe, from nothing to nonsense: (relpages, reltuples) of our tables.
_STATISTICS = {
    "never analyzed": (0, -1),
    "analyzed when empty": (0, 0),
    "one row a page": (1000, 1000),
    "a thousand million rows": (1, 1e9),
    "fresh": None,
}


def _shop(database: Database, crowd: dict[str, int] | None) -> Database:
    open_shop(database, target="sql")
    for table in _OURS:
        database.execute(f"ALTER TABLE inturn.{table} SET (autovacuum_enabled = false)")
    if crowd is not None:
        load = _CROWD
        for name, number in crowd.items():
            load = load.replace(f"{{{name}}}", str(number))
        database.execute(load)
    append_keys(database, LIVE, prefix="live")
    return database


@pytest.fixture(scope="module")
def alone(server: Server, template: str) -> Iterator[Database]:
    """A database with the live keys and one deep key of 200 commands."""
    database = Database(server, "p5_alone", template=template)
    try:
        yield _shop(database, {"idle": 0, "held": 0, "waiting": 0, "depth": 200})
    finally:
        database.drop()


@pytest.fixture(scope="module")
def crowded(server: Server, template: str) -> Iterator[Database]:
    """A database with the live keys in a crowd of idle, held, waiting and deep ones."""
    database = Database(server, "p5_crowd", template=template)
    try:
        yield _shop(database, {"idle": IDLE, "held": HELD, "waiting": WAITING, "depth": DEPTH})
    finally:
        database.drop()


def _believe(database: Database, statistics: tuple[int, float] | None) -> None:
    """Give our tables such statistics, for the tests that follow too, which do not rely on any."""
    believe(database, _OURS, statistics)


@contextmanager
def _undone(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """A connection in a transaction that is rolled back: the database is shared by many tests."""
    connection = database.connect(autocommit=False, user=OWNER)
    try:
        yield connection
    finally:
        # A session that is only closed holds its locks for a moment longer: the next claim would miss them.
        if not connection.closed:
            connection.rollback()
        connection.close()


def _cost(connection: psycopg.Connection[Any], query: str, warm: int = 7) -> int:
    """Return the blocks that a statement reads once its plans are settled; it is undone."""
    read = []
    for _ in range(warm + 2):
        # No savepoint: a turn is claimed at the top level of its transaction.
        read.append(buffers(explain(connection, query)))
        connection.rollback()
    return min(read[-3:])  # in one it may read the catalog again, since autovacuum was there


#: Each turn's step, beside the deep key's own. The deep key is the oldest ready: `since` passes it.
_STEPS = {
    "claim of one": "SELECT * FROM inturn.claim('shop')",
    "claim of many": "SELECT * FROM inturn.claim('shop', max_keys => 32)",
    "claim of a live one": "SELECT * FROM inturn.claim('shop', (SELECT min(ready_at)"
    " FROM inturn.key_cursor WHERE topic = 'shop' AND key = 'live7'))",
    "claim with commands": "SELECT * FROM inturn.claim_commands('shop', max_keys => 5)",
    "claim alone": "SELECT * FROM inturn._claim_alone('shop', '-infinity', 'host:1:1')",
    "turn of the deep key": "SELECT * FROM inturn.apply_batch('shop', '-infinity', 1, 'test')",
    "turns of many": "SELECT * FROM inturn.apply_batch('shop', '-infinity', 5, 'test')",
    "append to a live key": "SELECT inturn.append('shop', 'live1', 'insert')",
    "append to the deep key": "SELECT inturn.append('shop', 'deep', 'insert')",
    "append to a new key": "SELECT inturn.append('shop', 'new', 'insert')",
    "look for the next one": "SELECT inturn.next_ready(ARRAY['shop'], clock_timestamp())",
}


def test_a_step_reads_no_more_in_a_crowd_whatever_the_planner_believes(
    alone: Database, crowded: Database
) -> None:
    # Two more levels in each of a handful of indexes, nothing that grows with the rows.
    with _undone(alone) as connection:
        bounds = {step: _cost(connection, query) * 1.5 + 40 for step, query in _STEPS.items()}
    too_much: dict[str, str] = {}
    for name, statistics in _STATISTICS.items():
        _believe(crowded, statistics)
        for joins in ("on", "off"):
            with _undone(crowded) as connection:
                for setting in ("enable_hashjoin", "enable_mergejoin"):
                    connection.execute(f"SET {setting} = {joins}")
                connection.commit()
                for step, query in _STEPS.items():
                    read = _cost(connection, query)
                    if read > bounds[step]:
                        too_much[f"{step}, {name}, joins {joins}"] = f"{read} > {bounds[step]}"
    assert too_much == {}


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
def test_the_plan_of_a_claim_is_a_bounded_walk_of_the_ready_index(crowded: Database, mode: str) -> None:
    for name, statistics in _STATISTICS.items():
        with _undone(crowded) as connection:
            _believe(crowded, statistics)
            _assert_bounded_walk(_plan_of_claim(connection, mode), name)


def _plan_of_claim(connection: psycopg.Connection[Any], mode: str) -> Any:
    query, settings = query_of_claim(connection)
    for name, value in {**settings, "plan_cache_mode": mode}.items():
        connection.execute(f"SET LOCAL {name} = {value}")
    types = "text, timestamptz, timestamptz, integer"
    connection.execute(f"PREPARE claim ({types}) AS {query}")
    claim = "EXECUTE claim ('shop', '-infinity', clock_timestamp(), 1)"
    explain(connection, claim)  # what a session reads of the catalogs at first is no part of the walk
    return explain(connection, claim)


def _assert_bounded_walk(plan: Any, statistics: str) -> None:
    # Beside the walk, one look at whether the topic is paused; and two looks a marked key.
    steps = [step for step in nodes(plan) if step.get("Parent Relationship") != "InitPlan"]
    looks = [step for step in steps if step.get("Parent Relationship") == "SubPlan"]
    walk = [step for step in steps if step["Node Type"] != "Result" and step not in looks]
    assert [step["Node Type"] for step in walk] == ["Limit", "LockRows", "Index Scan"], statistics
    assert [look["Index Name"] for look in looks] == ["key_mark_pkey"] * 2, statistics
    for look in looks:
        assert all(bound in look["Index Cond"] for bound in ("topic =", "key =", "epoch =")), statistics
    scan = walk[-1]
    assert scan["Index Name"] == "ticket_ready", statistics
    # Both bounds are the index's, or the walk goes on over every key that waits for a retry.
    for bound in ("(topic)::text =", "ready_at >=", "ready_at <="):
        assert bound in scan["Index Cond"], statistics
    assert "Filter" not in scan, statistics
    assert buffers(plan) <= 15, statistics


def test_held_waiting_and_idle_keys_are_never_claimed(crowded: Database) -> None:
    with _undone(crowded) as connection:
        rows = connection.execute("SELECT key FROM inturn.claim('shop', '-infinity', 1000)").fetchall()
    assert {key.rstrip("0123456789") for (key,) in rows} == {"live", "deep"}
    assert len(rows) == LIVE + 1


def _walked(database: Database) -> int:
    """Return how many entries of the ready index were read so far, dead ones included."""
    entries: int = database.value(
        "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelid = 'inturn.ticket_ready'::regclass"
    )
    return entries


def _walks(connection: psycopg.Connection[Any], query: str) -> int:
    """Return how many entries of the ready index a statement reads, dead ones included."""
    counter = "SELECT pg_stat_get_xact_tuples_returned('inturn.ticket_ready'::regclass)"
    walked = []
    for statement in (counter, query, counter):
        row = connection.execute(statement).fetchone()
        assert row is not None
        walked.append(row[0])
    return int(walked[2] - walked[0])


@pytest.mark.parametrize("target", ["sql", "python"])
def test_with_a_snapshot_held_open_the_hand_keeps_every_claim_short(
    database: Database, target: Literal["sql", "python"]
) -> None:
    open_shop(database, target=target)
    report = database.session()
    report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    report.execute("SELECT count(*) FROM inturn.ticket")
    turns = 600
    append_keys(database, turns)
    before, began_at = _walked(database), time.monotonic()
    if target == "sql":
        applier = database.connect(user=APPLIER)
        applier.execute("CALL inturn.apply(max_keys => 1)")
        applier.close()  # which flushes its statistics
    else:
        apply_all(database, max_keys=1)
    # A pass begins anew ten times a second.
    looks = 10 * (time.monotonic() - began_at)
    walked = until(lambda: (n := _walked(database) - before) >= turns and n, "the applier's statistics")
    assert count_applied(database) == turns

    connection = database.connect(autocommit=False, user=OWNER)
    connection.execute("SELECT inturn.append('shop', 'live', 'insert')")
    hand = "(SELECT ready_at FROM inturn.key_cursor WHERE key = 'live')"
    # What the turns have left behind stays as long as the snapshot, or this test proves nothing.
    assert _walks(connection, "SELECT * FROM inturn.claim('shop')") > turns
    assert _walks(connection, f"SELECT * FROM inturn.claim('shop', {hand})") <= 2
    # Without the hand it is half the turns on average. A slower machine begins more passes for as many turns.
    assert walked < turns * (turns / 8 + looks)


@pytest.mark.parametrize("target", ["sql", "python"])
def test_a_key_whose_handler_hangs_leaves_the_others_to_a_second_applier(
    database: Database, target: Literal["sql", "python"]
) -> None:
    open_shop(database, target=target)
    # Left in this order: the gate opens before the worker ends.
    with at_work(database, workers=1), gate_shut(database):
        append(database, "stuck", "after", "insert")
        wait_at_gate(database)
        append_keys(database, 500)
        # The first applier has only the stuck key: it was claimed before there were others.
        apply_all(database)
        assert count_applied(database) == 500
        assert applied(database, "stuck") == []
    apply_all(database)
    assert applied(database, "stuck") == [1, 2]


def test_a_hanging_handler_holds_up_no_more_keys_than_share_its_transaction(
    database: Database,
) -> None:
    open_shop(database, target="sql")
    append_keys(database, 100, prefix="before")
    append(database, "stuck", "after")
    append_keys(database, 100, prefix="behind")
    with ExitStack() as stack:
        gate = stack.enter_context(gate_shut(database))
        stack.enter_context(at_work(database, workers=1, max_keys=8))
        stack.callback(gate.rollback)
        wait_at_gate(database)
        apply_all(database)
        assert count_applied(database) >= 201 - 8


@pytest.mark.parametrize("by", ["CALL", "worker"])
def test_slow_handlers_do_not_share_a_transaction(database: Database, by: str) -> None:
    open_shop(database, target="sql")
    append_keys(database, 20, name="slow")
    if by == "CALL":
        database.execute("CALL inturn.apply()")
    else:
        apply_all(database)
    assert database.value("SELECT count(DISTINCT xid) FROM app.witness") == 20


def test_quick_handlers_do_share_a_transaction(database: Database) -> None:
    open_shop(database, target="sql")
    append_keys(database, 200)
    database.execute("CALL inturn.apply()")
    assert database.value("SELECT count(DISTINCT xid) FROM app.witness") < 150


def test_a_deep_key_goes_to_the_back_after_every_turn(database: Database) -> None:
    open_shop(database, target="sql", settings="batch_commands => 10")
    append(database, "deep", *["insert"] * 500)
    append_keys(database, 5, prefix="live")
    apply_all(database, max_keys=1)
    last_live = database.value("SELECT max(id) FROM app.witness WHERE key LIKE 'live%'")
    assert last_live <= 10 + 5, "the deep key took a second turn before the live ones had their first"


def test_a_failing_key_delays_no_other(database: Database) -> None:
    open_shop(database, settings="max_attempts => 3, backoff_base => '1 hour', backoff_cap => '1 hour'")
    for number in range(20):
        append(database, f"bad{number}", "fail")
    append_keys(database, 200)
    outcome = apply_all(database)
    assert (outcome.commands, outcome.failures) == (200, 20)
