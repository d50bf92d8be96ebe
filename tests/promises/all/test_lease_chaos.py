"""Lease clients that are stopped past their lease, killed and cut off: order, and nothing lost or late."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from support.combinations import sizes
from support.crowd import Crowd
from support.database import Database, until
from support.lease_scenes import claim
from support.oracle import Oracle

#: A client in its own process, in plain SQL, as one writes it in any language. Cut off, it connects again.
_CLIENT = """
import random, sys
import psycopg

name, dsn, prepares = sys.argv[1:]
# As the how-to has it: not through a pooler, where the next transaction may be another session's.
more = {} if prepares == "True" else {"prepare_threshold": None}
print("up", flush=True)
while True:
    try:
        with psycopg.connect(dsn, autocommit=True, application_name="lease client", **more) as connection:
            ask = lambda query, *values: connection.execute(query, values).fetchall()
            while True:
                keys = {}
                claimed = ask("SELECT * FROM app.claim('{orders,given}', 4, %s)", name)
                for topic, key, epoch, seq, _ in claimed:
                    keys.setdefault((topic, key, epoch), []).append(seq)
                for lease, seqs in keys.items():
                    try:
                        for seq in sorted(seqs):
                            if random.random() < 0.02:
                                ask("SELECT inturn.fail(%s, %s, %s, %s, 'by chance',"
                                    " jsonb_build_object('retry_after', '0'))", *lease, seq)
                                break
                            ask("SELECT app.effect(%s, %s, %s)", lease[1], seq, lease[2])
                            if ask("SELECT inturn.advance(%s, %s, %s, %s)", *lease, seq) == [(None,)]:
                                break
                        else:
                            ask("SELECT inturn.release(%s, %s, %s)", *lease)
                    except psycopg.Error as error:
                        if error.sqlstate != "IT030":
                            raise
                if not keys:
                    ask("SELECT pg_sleep(0.01)")
    except psycopg.OperationalError:
        pass
"""
_RAN_OUT = "SELECT count(*) FROM inturn.turn WHERE error LIKE 'the lease of%%'"


class Clients:
    """Client processes; one that was killed is replaced."""

    def __init__(self, database: Database, count: int) -> None:
        self._database = database
        self._names = iter(range(1000))
        self.oracle = Oracle(database)
        self.processes = [self._start() for _ in range(count)]

    def _start(self) -> subprocess.Popen[bytes]:
        prepares = str(self._database.server.pooler is None)
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _CLIENT,
                f"client {next(self._names)}",
                self._database.applier_dsn,
                prepares,
            ],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return process

    def kill(self, which: int) -> None:
        """End a process without a word, and start another."""
        self._end(self.processes[which])
        self.processes[which] = self._start()

    def stop_past_its_lease(self, which: int) -> None:
        """Stop a process until every lease that there is now has run out, and continue it."""
        process = self.processes[which]
        process.send_signal(signal.SIGSTOP)
        newest = self._database.value("SELECT max(lease_until) FROM inturn.key_cursor")
        if newest is not None:
            until(lambda: self._database.value("SELECT %s < clock_timestamp()", [newest]), "leases over")
        process.send_signal(signal.SIGCONT)

    def cut_off(self) -> None:
        """Terminate a session of some client."""
        self._database.execute(
            "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'lease client'"
            " ORDER BY random() LIMIT 1) one"
        )

    def end(self) -> None:
        for process in self.processes:
            self._end(process)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def clients(witness: Database) -> Iterator[Clients]:
    witness.execute(
        "UPDATE inturn.topic SET lease = '150 ms', max_attempts = 1000;"
        "SELECT inturn.create_topic('given', 'python', numbering => 'given', lease => '150 ms',"
        "                           max_attempts => 1000)"
    )
    clients = Clients(witness, 4)
    yield clients
    clients.end()


@sizes("seconds", 2, rest=5)
def test_lease_clients_killed_stopped_and_cut_off_keep_every_key_in_turn(
    witness: Database, clients: Clients, seconds: float
) -> None:
    """P1 to P4 and P7: repeats stand next to each other, and who was fenced off did nothing more."""
    oracle = clients.oracle
    crowd = Crowd(witness)
    seed = random.randrange(10**9)
    print("seed", seed)
    chance = random.Random(seed)
    numbers = [(f"g{key}", seq) for key in range(6) for seq in range(1, 41)]
    chance.shuffle(numbers)
    with oracle.watching(seconds_between=0.2):
        ends_at = time.monotonic() + seconds
        # On a busy machine chance has few turns in that time.
        while time.monotonic() < ends_at or not witness.value(_RAN_OUT):
            crowd.call(2, "'orders', 10, 30, rollbacks => 0.1")
            for key, seq in numbers[-20:]:
                witness.execute("SELECT inturn.append('given', %s, 'insert', seq => %s)", [key, seq])
            del numbers[-20:]
            chance.choice(
                [
                    lambda: clients.kill(chance.randrange(4)),
                    lambda: clients.stop_past_its_lease(chance.randrange(4)),
                    lambda: clients.stop_past_its_lease(chance.randrange(4)),
                    clients.cut_off,
                ]
            )()
        for key, seq in numbers:
            witness.execute("SELECT inturn.append('given', %s, 'insert', seq => %s)", [key, seq])
        oracle.wait_no_key_ready()
    assert oracle.check_drained() > 240 + 12 * seconds
    effects, repeated = witness.execute(
        "SELECT count(*), count(*) - count(DISTINCT (key, seq)) FROM app.outside"
    )[0]
    assert repeated < effects / 2
    assert claim(witness) == []
