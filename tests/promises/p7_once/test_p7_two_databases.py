"""P7 across two databases: with accept in the receiver's, effects happen exactly once, and in order."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeAlias

import pytest
from support.database import Database, until
from support.lease_client import lease_client
from support.process import InturnProcess
from support.race import gate_shut
from support.receiving import SCHEMA, SECRET, Process, free_port, receiving
from support.shop import wait_at_gate

from inturn.schema.receiver import upgrade_receiver

Member: TypeAlias = "Process | InturnProcess"

KEYS, COMMANDS = 12, 8


@pytest.fixture
def sender(database: Database) -> Database:
    """A's database, with commands to be posted."""
    database.execute("""
        SELECT inturn.create_topic('orders', max_attempts => 1000, lease => '1 second',
                                   backoff_base => '10 ms', backoff_cap => '50 ms')
    """)
    for seq in range(1, COMMANDS + 1):
        database.execute(
            "SELECT inturn.append('orders', 'order-' || n, 'set', jsonb_build_object('seq', %s::bigint))"
            " FROM generate_series(1, %s) n",
            [seq, KEYS],
        )
    return database


@pytest.fixture
def service(empty_database: Database) -> Database:
    """B's database."""
    upgrade_receiver(empty_database.dsn)
    empty_database.execute(SCHEMA)
    # Room to be killed in: before the effect; and a gate, accepted and not yet committed.
    empty_database.execute("""
        CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_sleep(random() * 0.01);
            PERFORM pg_advisory_xact_lock_shared(4242);
            RETURN NEW;
        END $$;
        CREATE TRIGGER before BEFORE INSERT ON effect FOR EACH ROW EXECUTE FUNCTION linger();
    """)
    return empty_database


@pytest.fixture
def port(sender: Database) -> int:
    """Where B listens, and A's topic posts to."""
    port = free_port()
    sender.execute(f"SELECT inturn.set_topic('orders', 'test', target => 'http://127.0.0.1:{port}/')")
    return port


def ours(dsn: str, _port: int) -> InturnProcess:
    """Start `inturn apply`, which signs."""
    return InturnProcess(dsn, "apply", environment={"INTURN_HTTP_SECRET": SECRET})


class Crew:
    """Members of one kind, of which some are killed, stopped and started again."""

    def __init__(self, start: Callable[[], Member], stack: ExitStack, count: int = 2) -> None:
        self._start = start
        self._stack = stack
        self.members = [self._begin() for _ in range(count)]

    def replace(self, place: int) -> None:
        self.members[place].kill()
        self.members[place] = self._begin()

    def _begin(self) -> Member:
        member = self._start()
        self._stack.push(member)
        return member


def send_twice(service: Database, appliers: Crew) -> None:
    """Kill the appliers with requests in their hands, and let those take effect once they are sent again.

    While no service is killed: the first of each two commits, so the second is a repeat.
    """
    with gate_shut(service):
        wait_at_gate(service)
        for place in range(len(appliers.members)):
            appliers.replace(place)
        # A key has one request at the gate; any other of it waits for that one, in accept.
        until(
            lambda: service.value(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pg_blocking_pids(pid) && %s::integer[]",
                [wait_at_gate(service)],
            ),
            "a request sent again",
            60,
        )
    until(lambda: service.value("SELECT count(*) FROM refused"), "a request refused as a repeat")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.each_value
@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("applier", [lease_client, ours])
def test_p7_effects_across_two_databases_are_exactly_once(
    sender: Database,
    service: Database,
    port: int,
    stack: ExitStack,
    applier: Callable[[str, int], Member],
    seed: int,
) -> None:
    services = Crew(lambda: receiving(service.dsn, port), stack)
    appliers = Crew(lambda: applier(sender.applier_dsn, port), stack)
    chance = random.Random(seed)

    def effects() -> int:
        count: int = service.value("SELECT count(*) FROM effect")
        return count

    def go_on(more: int) -> None:
        """Let so many more effects happen, or all."""
        goal = min(effects() + more, KEYS * COMMANDS)
        until(lambda: effects() >= goal, f"effect {goal}", 60)

    send_twice(service, appliers)
    stopped: list[Member] = []
    while effects() < KEYS * COMMANDS * 0.9:
        go_on(chance.randint(1, 8))
        crew = chance.choice([services, appliers])
        place = chance.randrange(len(crew.members))
        if chance.random() < 0.5:
            crew.replace(place)
        else:
            # Left behind past its leases, or with a request in its hands that is sent again meanwhile.
            crew.members[place].send(signal.SIGSTOP)
            stopped.append(crew.members[place])
        if len(stopped) > 1 or chance.random() < 0.3:
            for process in stopped:
                if process.running:
                    process.send(signal.SIGCONT)
            stopped.clear()
    for process in stopped:
        if process.running:
            process.send(signal.SIGCONT)
    go_on(KEYS * COMMANDS)
    until(
        lambda: sender.execute("SELECT 1 FROM inturn.key_cursor WHERE ready_at IS NOT NULL") == [],
        "all keys idle",
        60,
    )

    keys = [f"order-{n}" for n in range(1, KEYS + 1)]
    done = dict(service.execute("SELECT key, array_agg(seq ORDER BY id) FROM effect GROUP BY key"))
    assert done == {key: list(range(1, COMMANDS + 1)) for key in keys}
    assert service.execute("SELECT 1 FROM effect WHERE payload <> jsonb_build_object('seq', seq)") == []
    assert dict(sender.execute("SELECT key, applied_seq FROM inturn.key_cursor")) == dict.fromkeys(
        keys, COMMANDS
    )
