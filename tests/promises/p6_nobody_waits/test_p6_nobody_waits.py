"""P6: appliers never wait for callers, callers never for handlers, callers of different keys never."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import pytest
from support.database import Database, Session, until
from support.roles import APPLIER, OWNER
from support.shop import (
    TOPIC,
    append,
    append_keys,
    applied,
    apply_all,
    assert_once_and_in_turn,
    at_work,
    gate_shut,
    handlers_of,
    never_poll,
    open_shop,
    wait_applied,
    wait_at_gate,
)

from inturn.applier import Batch
from inturn.applier.inside.batch import OLDEST
from inturn.applier.inside.python_target import PythonTarget
from inturn.applier.inside.sql_target import SqlTarget
from inturn.applier.stop import Stop

#: What a test keeps locked it keeps for longer; what an applier locks for its commit, or the server for an
#: extension of a table, is over before, however slow the machine is.
_RAISES = "-c lock_timeout=2s"
_APPEND = "SELECT inturn.append('shop', %s, %s)"
_TARGETS = pytest.mark.parametrize("target", ["sql", "python"])
Target = Literal["sql", "python"]


def _caller(database: Database) -> Session:
    """Return a session that raises rather than wait for a lock that another session keeps."""
    return database.session(options=_RAISES)


@pytest.fixture(params=["CALL", "worker"])
def shop(request: pytest.FixtureRequest, database: Database) -> Database:
    """A shop that `_drain` drains by SQL or by a worker."""
    open_shop(database, target="sql" if request.param == "CALL" else "python")
    return database


def _drain(database: Database) -> None:
    if database.value("SELECT target FROM inturn.topic WHERE name = %s", [TOPIC]) == "python":
        apply_all(database)
    else:
        connection = database.connect(options=_RAISES, user=APPLIER)
        connection.execute("CALL inturn.apply()")


def test_a_callers_open_transaction_holds_up_no_other_key(shop: Database) -> None:
    caller = shop.session()
    caller.execute(_APPEND, ["open", "insert"])
    append_keys(shop, 100)
    _drain(shop)
    assert shop.value("SELECT count(*) FROM app.witness") == 100
    caller.commit()
    _drain(shop)
    assert_once_and_in_turn(shop)


def test_a_callers_open_transaction_does_not_hold_up_the_committed_commands_of_its_key(
    shop: Database,
) -> None:
    append(shop, "a", "insert", "update")
    caller = shop.session()
    caller.execute(_APPEND, ["a", "delete"])
    _drain(shop)
    assert applied(shop, "a") == [1, 2]
    caller.rollback()
    _drain(shop)
    assert_once_and_in_turn(shop)


def test_a_failing_key_is_failed_and_held_under_a_callers_open_transaction(
    database: Database,
) -> None:
    open_shop(database, settings="max_attempts => 1")
    append(database, "a", "fail")
    caller = database.session()
    caller.execute(_APPEND, ["a", "insert"])
    assert apply_all(database).held == 1
    caller.commit()
    assert database.value("SELECT held_at IS NOT NULL FROM inturn.key_cursor")


@_TARGETS
@pytest.mark.parametrize("place", ["before", "after", "commit"])
def test_a_slow_handler_holds_up_no_caller_of_its_key(database: Database, target: Target, place: str) -> None:
    open_shop(database, target=target)
    append(database, "a", "insert")
    apply_all(database)  # known and drained: the more critical case
    # Left in this order: the gate opens before the worker ends.
    # At `commit` a deferred constraint waits: those are looked at before the key is locked to its callers.
    with at_work(database), gate_shut(database):
        append(database, "a", place)
        wait_at_gate(database)
        caller = _caller(database)
        for seq in (3, 4):
            assert caller.execute(_APPEND, ["a", "insert"]) == [(seq,)]
            caller.commit()
    apply_all(database)
    assert_once_and_in_turn(database)


@_TARGETS
@pytest.mark.parametrize("place", ["before", "commit"])
def test_what_waits_keeps_no_caller_from_the_keys_done_before_it(
    database: Database, target: Target, place: str
) -> None:
    """A handler, or a deferred constraint: it may wait for a row of that very caller.

    A finish before the last of them is a deadlock.
    """
    open_shop(database, target=target)
    append(database, "a", "insert")
    append(database, "b", place)
    with gate_shut(database) as gate, ThreadPoolExecutor(1) as pool:
        batch = pool.submit(_batch, database, 2)
        wait_at_gate(database)
        caller = _caller(database)
        assert caller.execute(_APPEND, ["a", "insert"]) == [(2,)]
        gate.rollback()
        assert batch.result().keys == 2
    caller.commit()
    apply_all(database)
    assert_once_and_in_turn(database)


def _batch(database: Database, max_keys: int) -> Batch:
    """Apply one batch of the shop's keys, in one transaction."""
    handlers = handlers_of(database)
    if handlers is None:
        by: Any = SqlTarget(TOPIC, "inturn", "test", Stop())
    else:
        by = PythonTarget(TOPIC, handlers, Stop(), "inturn", "test")
    done: Batch = by.apply_batch(database.connect(user=APPLIER), OLDEST, max_keys)
    return done


def test_a_held_and_a_retried_key_hold_up_no_caller(database: Database) -> None:
    open_shop(database, settings="max_attempts => 1")
    append(database, "held", "fail")
    apply_all(database)
    caller = _caller(database)
    assert caller.execute(_APPEND, ["held", "insert"]) == [(2,)]
    caller.commit()


@pytest.mark.parametrize("known", [False, True])
def test_callers_of_different_keys_never_wait_for_each_other(database: Database, *, known: bool) -> None:
    open_shop(database, target="sql")
    if known:
        append_keys(database, 20)
        apply_all(database)
    callers = [_caller(database) for _ in range(20)]
    for number, caller in enumerate(callers, 1):
        caller.execute(_APPEND, [f"k{number}", "insert"])
        caller.execute(
            "INSERT INTO inturn.outbox (topic, key, name) VALUES ('shop', %s, 'more')", [f"k{number}"]
        )
    for caller in callers:
        caller.commit()
    apply_all(database)
    assert_once_and_in_turn(database)


def test_a_caller_that_waits_for_its_key_holds_up_no_applier(database: Database) -> None:
    open_shop(database, target="sql")
    append(database, "a", "insert")
    first, second = database.session(), database.session()
    first.execute(_APPEND, ["a", "insert"])
    waiting = second.begin(_APPEND, ["a", "insert"])
    second.wait_blocked()
    _drain(database)
    assert applied(database, "a") == [1]
    first.commit()
    assert waiting.result() == [(3,)]
    _drain(database)
    assert applied(database, "a") == [1, 2]
    second.commit()
    _drain(database)
    assert_once_and_in_turn(database)


#: How long the callers leave their transactions open, in seconds: what is measured, not a way to wait.
OPEN_SECONDS = 10.0
KINDS = ("new", "idle", "busy")


def _wait_for(moment: float) -> None:
    until(lambda: time.monotonic() >= moment, "the moment to commit")


@pytest.mark.needs_session("no notification comes through a pooler in transaction mode: appliers poll")
def test_transactions_left_open_cost_few_empty_turns_and_are_applied_without_a_poll_after_commit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_shop(database)
    never_poll(database, monkeypatch)
    keys = [f"{kind}{number}" for number in range(4) for kind in KINDS]
    for key in keys:
        if key.startswith("idle"):
            append(database, key, "insert")
    apply_all(database)
    for key in keys:
        if key.startswith("busy"):
            append(database, key, "insert")
    callers = {key: database.session() for key in keys}
    for key, caller in callers.items():
        caller.execute(_APPEND, [key, "late"])
    turns = "SELECT empty_turns FROM inturn.key_cursor WHERE key = %s"
    with at_work(database):
        started_at = time.monotonic()
        until(
            lambda: all(applied(database, key) == [1] for key in keys if key.startswith("busy")),
            "the first commands, after which finish finds the keys locked",
        )
        for number, (key, caller) in enumerate(callers.items(), 1):
            # At moments spread over the second half of the ten seconds.
            commit_at = started_at + OPEN_SECONDS * (0.5 + 0.5 * number / len(keys))
            _wait_for(commit_at)
            if key.startswith("busy"):
                more = turns + " AND empty_turns > 5"
                found = until(partial(database.execute, more, [key]), "found locked")[0][0]
                # After 1 + 2 + 4 + ... + 64 ms one every 100 ms.
                assert found <= 8 + (time.monotonic() - started_at) / 0.1
            else:
                assert database.execute(turns, [key]) in ([], [(0,)])
            caller.commit()
            wait_applied(database, key, "late")
    assert_once_and_in_turn(database)


def test_empty_turns_leave_no_history_and_do_not_count_as_turns(database: Database) -> None:
    open_shop(database, target="sql")
    append(database, "a", "insert")
    caller = database.session()
    caller.execute(_APPEND, ["a", "insert"])
    for _ in range(5):
        database.execute("CALL inturn.apply()")
    assert database.execute("SELECT epoch, empty_turns > 0 FROM inturn.key_cursor") == [(1, True)]
    assert database.value("SELECT count(*) FROM inturn.turn") == 1
    caller.rollback()
    until(
        lambda: (
            database.execute("CALL inturn.apply()")
            and database.value("SELECT ready_at IS NULL FROM inturn.key_cursor")
        ),
        "idle",
    )


def test_an_empty_turn_waits_longer_each_time_up_to_a_tenth_of_a_second(database: Database) -> None:
    open_shop(database, target="sql")
    append(database, "a", "insert")
    caller = database.session()
    caller.execute(_APPEND, ["a", "insert"])
    database.execute("CALL inturn.apply()")
    waits = []
    connection = database.connect(autocommit=True, user=OWNER)
    for _ in range(12):
        connection.execute("UPDATE inturn.key_cursor SET ready_at = '-infinity'")
        connection.execute("SELECT inturn.apply_batch('shop', '-infinity', 1, 'test')")
        row = connection.execute(
            "SELECT extract(epoch FROM ready_at - clock_timestamp()) FROM inturn.key_cursor"
        ).fetchone()
        assert row is not None
        waits.append(float(row[0]))
    assert max(waits) <= 0.1
    # The last ones wait the whole tenth, less what it took to ask.
    assert max(waits[-3:]) > 0.05


def test_p6_an_operator_who_waits_for_a_lease_keeps_no_pass_from_moving_on(witness: Database) -> None:
    """A transaction with a number would, as long as it waits; and every try would take a number."""
    witness.execute("UPDATE inturn.topic SET lease = '1 hour'")
    witness.execute("SELECT inturn.append('orders', 'x', 'insert')")
    epoch = witness.value("SELECT epoch FROM inturn.claim(ARRAY['orders'], 1, NULL, 'me')")
    operator = witness.session()
    waiting = operator.begin("SELECT inturn.skip('orders', 'x', 1, 'because')")
    seen = "SELECT backend_xid::text FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
    assert until(lambda: witness.execute(seen, [operator.pid]), "the wait") == [(None,)]
    witness.execute("SELECT inturn.release('orders', 'x', %s)", [epoch])
    assert waiting.result()
