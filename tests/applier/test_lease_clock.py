"""The database's clock, as an applier that claims by lease goes by it."""

from __future__ import annotations

import asyncio
import threading

from support.b_server import open_topic, put
from support.database import Database, until
from support.roles import APPLIER, as_role

from inturn.applier.outside.leases import Lease, Leases
from inturn.schema.connection import connect_async


def claim(database: Database) -> Lease:
    async def run() -> Lease:
        connection = await connect_async(as_role(database.dsn, APPLIER))
        async with connection:
            return (await Leases("inturn", "me").claim(connection, "posts", 1))[0]

    return asyncio.run(run())


def test_a_claim_that_waited_does_not_make_signatures_of_the_future(database: Database) -> None:
    """A receiver refuses them from five minutes on, and the key is held."""
    open_topic(database, "http://127.0.0.1:1/", "lease => '1 hour'")
    put(database, "a", "one")
    lock = database.session()
    lock.execute("LOCK TABLE inturn.ticket IN ACCESS EXCLUSIVE MODE")
    claimed: list[Lease] = []
    thread = threading.Thread(target=lambda: claimed.append(claim(database)))
    thread.start()
    waits = "SELECT bool_or(clock_timestamp() > query_start + interval '1 s') FROM pg_stat_activity"
    until(lambda: database.value(f"{waits} WHERE wait_event_type = 'Lock'"), "the claim to have waited")
    lock.rollback()
    thread.join(60)
    here = claimed[0].database_time()
    assert here <= database.value("SELECT extract(epoch FROM clock_timestamp())::double precision")
