"""A lease that was lost is counted once, however that is found out; the alert counts on it."""

from __future__ import annotations

import asyncio
import threading

import pytest
from support.b_server import TOPIC, at_work, open_topic, put
from support.database import Database, until

from inturn.applier import Applier, Command, Fleet
from inturn.applier.metrics.tallies import LOST_LEASES, Place

TAKE_OVER = """
    DO $$ BEGIN
        UPDATE inturn.key_cursor SET ready_at = clock_timestamp(), lease_until = clock_timestamp();
        PERFORM inturn.claim('{posts}'::text[], 1, '1 hour', 'another');
    END $$"""


def lost(fleet: Fleet) -> int | None:
    """Return how many lost leases it has counted; None: it has no such counter."""
    return fleet.tallies.snapshot().counts.get(Place(LOST_LEASES, TOPIC))


@pytest.mark.parametrize("then", ["hangs", "returns", "raises"])
def test_a_lease_that_another_applier_has_by_now_is_counted(database: Database, then: str) -> None:
    # What hangs, the keeper finds out about: it renews after half of the lease.
    open_topic(database, "python", f"lease => '{'2 seconds' if then == 'hangs' else '1 hour'}'")
    begun, over = threading.Event(), threading.Event()
    applier = Applier()

    @applier.handler(TOPIC, outside=True)
    async def handle(_: Command) -> None:
        begun.set()
        while not over.is_set():
            await asyncio.sleep(0.002)
        if then == "raises":
            raise ValueError(then)

    put(database, "a", "one")
    with at_work(database, applier) as fleet:
        assert begun.wait(30)
        assert lost(fleet) == 0, "of a counter that begins with 1, Prometheus sees no rise"
        database.execute(TAKE_OVER)
        if then != "hangs":
            over.set()
        until(lambda: lost(fleet), "the lease counted as lost")
    assert lost(fleet) == 1


def test_a_lease_that_ran_out_while_a_thread_is_at_work_is_counted(database: Database) -> None:
    open_topic(database, "python", "lease => '2 seconds'")
    begun, over = threading.Event(), threading.Event()
    applier = Applier()

    @applier.handler(TOPIC, outside=True)
    def handle(_: Command) -> None:
        begun.set()
        over.wait(60)

    put(database, "a", "one")
    with at_work(database, applier) as fleet:
        assert begun.wait(30)
        lock = database.session()
        lock.execute("SELECT FROM inturn.ticket FOR UPDATE")
        until(lambda: lost(fleet), "the lease counted as lost")
        over.set()
        lock.rollback()
    assert lost(fleet) == 1
