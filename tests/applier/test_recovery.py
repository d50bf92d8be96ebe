"""After a loss of the database, the first worker that it serves again ends the wait of all others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from support import shop
from support.database import Database, until
from support.roles import DEPLOYER, OWNER

from inturn.applier import Applier, calls, pacing
from inturn.applier.inside.alone import Alone, TurnLost, server_of
from inturn.applier.inside.batch import OLDEST, Target
from inturn.applier.inside.visits import Visits
from inturn.applier.inside.worker import Worker
from inturn.applier.process.recovery import Recovery
from inturn.applier.stop import Bell, Stop
from inturn.schema.connection import connect

#: Whoever is not woken waits for so long.
_LONG = 3600.0


def test_whoever_is_connected_again_wakes_all_who_wait() -> None:
    recovery, stop = Recovery(), Stop()
    waiting = [threading.Thread(target=recovery.wait, args=(_LONG, stop), daemon=True) for _ in range(3)]
    for thread in waiting:
        thread.start()
    until(lambda: len(recovery._condition._waiters) == 3, "all to wait")  # type: ignore[attr-defined]
    recovery.succeeded()
    for thread in waiting:
        thread.join(60)
    assert not any(thread.is_alive() for thread in waiting)


def test_a_worker_outside_goes_on_once_one_inside_is_connected_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself it would wait for an hour."""
    shop.open_shop(database)
    database.execute("SELECT inturn.create_topic('outside')")
    applier, done = Applier(), threading.Event()
    applier.handler(shop.TOPIC)(shop.write_witness)
    applier.handler("outside", outside=True)(lambda _: done.set())
    monkeypatch.setattr(pacing, "reconnect_seconds", lambda _: _LONG)
    # Whoever works inside does not wait at all.
    monkeypatch.setattr(Recovery, "wait", lambda _recovery, _seconds, _stop: None)
    with shop.at_work(database, applier, workers=1) as fleet:
        shop.append(database, "a", "insert")
        shop.wait_applied(database, "a")
        database.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE application_name = 'inturn apply' AND datname = current_database()"
        )
        database.execute("SELECT inturn.append('outside', 'b', 'do')")
        until(lambda: fleet._recovery.times, "the worker inside to say that it is connected")
        # Again and again: it may have been said before the other one began to wait.
        until(lambda: fleet._recovery.succeeded() or done.is_set(), "the command outside")  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.ReadOnlySqlTransaction("a standby"),
        psycopg.OperationalError("the server closed the connection"),
    ],
)
def test_a_server_that_takes_connections_and_does_no_work_wakes_nobody(
    database: Database, monkeypatch: pytest.MonkeyPatch, error: psycopg.Error
) -> None:
    """As a standby after a failover: each would wake the others, which would connect without a pause."""
    monkeypatch.setattr(pacing, "reconnect_seconds", lambda _: 0.0)
    recovery, stop, attempts = Recovery(), Stop(), 0

    def choose(_connection: psycopg.Connection[Any]) -> Sequence[Target]:
        nonlocal attempts
        attempts += 1
        if attempts == 3:
            stop.request()
        raise error

    worker = _worker(database, choose, stop=stop, recovery=recovery)
    worker.run()
    assert (attempts, recovery.times, worker.error) == (3, 0, None)


def test_a_statement_that_was_cut_off_between_two_batches_has_no_key_taken_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a timeout of the session: no key was in hand."""
    monkeypatch.setattr(pacing, "reconnect_seconds", lambda _: 0.0)
    careful: list[None] = []
    monkeypatch.setattr(Visits, "be_careful", lambda _: careful.append(None))
    stop, errors = Stop(), [psycopg.errors.LockNotAvailable("cut"), psycopg.errors.QueryCanceled("cut")]

    def choose(_connection: psycopg.Connection[Any]) -> Sequence[Target]:
        if errors:
            raise errors.pop()
        stop.request()
        return []

    worker = _worker(database, choose, stop=stop, recovery=Recovery())
    worker.run()
    assert (errors, careful, worker.error) == ([], [], None)
    assert not worker._has_lost, "nor by whoever starts next"


def test_whoever_was_refused_waits_although_another_one_is_served(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "reconnect_seconds", lambda _: _LONG)
    recovery, stop, attempts, waits = Recovery(), Stop(), 0, []

    def choose(_connection: psycopg.Connection[Any]) -> Sequence[Target]:
        nonlocal attempts
        attempts += 1
        raise psycopg.errors.InsufficientPrivilege("not for you")

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        recovery.succeeded()
        stop.request()
        return True

    monkeypatch.setattr(stop, "wait", wait)
    monkeypatch.setattr(Recovery, "wait", lambda _recovery, _seconds, _stop: stop.request())
    _worker(database, choose, stop=stop, recovery=recovery).run()
    assert (attempts, waits) == (1, [_LONG])


def test_a_lost_turn_that_may_not_be_recorded_does_not_keep_a_worker_from_the_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its topic was granted to other appliers meanwhile: on every connection that would be refused again."""
    database.execute("SELECT inturn.create_topic('theirs')")
    database.execute("SELECT inturn.grant_topic('theirs', 'applier', %s)", [DEPLOYER])
    stop, chosen = Stop(), threading.Event()

    def end(_failed_in_a_row: int) -> float:
        stop.request()
        return 0.0

    monkeypatch.setattr(pacing, "reconnect_seconds", end)

    def choose(_connection: psycopg.Connection[Any]) -> Sequence[Target]:
        chosen.set()
        stop.request()
        return []

    worker = _worker(database, choose, stop=stop, recovery=Recovery())
    alone = Alone("inturn", "theirs", "a", 1, datetime.now(UTC))
    worker._lost = TurnLost(alone, psycopg.OperationalError("lost"), closed=False, server="another run")
    worker.run()
    assert chosen.is_set()
    assert worker._lost is None
    assert worker.totals.failures == 0


@pytest.mark.parametrize(("restarted", "failures"), [(False, 1), (True, 0)])
def test_a_lost_turn_counts_as_a_failure_where_it_was_the_commands(
    database: Database, *, restarted: bool, failures: int
) -> None:
    """The summary of an inturn apply said that a command had failed, and no key had one that did."""
    shop.open_shop(database)
    shop.append(database, "a", "insert")
    stop = Stop()

    def choose(_connection: psycopg.Connection[Any]) -> Sequence[Target]:
        stop.request()
        return []

    with connect(database.applier_dsn) as connection:
        call = calls.lease.claim_alone("inturn", shop.TOPIC, OLDEST, "test")
        claimed = call.on(connection)
        server = "another run" if restarted else server_of(connection)
    assert claimed is not None
    assert claimed.key is not None
    assert claimed.epoch is not None
    alone = Alone("inturn", shop.TOPIC, claimed.key, claimed.epoch, claimed.ready_at, is_begun=True)
    worker = _worker(database, choose, stop=stop, recovery=Recovery())
    worker._lost = TurnLost(alone, psycopg.OperationalError("lost"), closed=False, server=server)
    worker.run()
    assert worker.totals.failures == failures


def test_a_worker_outside_leaves_a_server_that_only_reads(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a standby to which a failover has led it: the primary takes its work, on a new connection."""
    monkeypatch.setattr(pacing, "REFUSED_SECONDS", 0.05)
    database.execute("SELECT inturn.create_topic('outside')")
    applier, done = Applier(), threading.Event()
    applier.handler("outside", outside=True)(lambda _: done.set())
    owner = database.connect(user=OWNER)
    with shop.at_work(database, applier, workers=1):
        database.execute("SELECT inturn.append('outside', 'a', 'do')")
        assert done.wait(60)
        done.clear()
        owner.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
        owner.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE application_name = 'inturn apply' AND datname = current_database()"
        )
        # Of what chooses topics, and of what applies them.
        refused = "the database refused, trying again"
        until(lambda: sum(refused in record.message for record in list(caplog.records)) >= 3, "refusals")
        owner.execute(f"ALTER DATABASE {database.name} RESET default_transaction_read_only")
        database.execute("SELECT inturn.append('outside', 'b', 'do')")
        assert done.wait(60)


def _worker(
    database: Database,
    choose: Callable[[psycopg.Connection[Any]], Sequence[Target]],
    *,
    stop: Stop,
    recovery: Recovery,
) -> Worker:
    return Worker(
        lambda: connect(database.applier_dsn, for_handlers=True),
        choose,
        schema="inturn",
        max_keys=1,
        drain=False,
        stop=stop,
        bell=Bell(1),
        recovery=recovery,
    )
