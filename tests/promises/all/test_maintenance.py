"""All promises under maintenance: each table is rewritten, each index built anew, in the middle of it all."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg.errors import DeadlockDetected, SerializationFailure
from support.combinations import sizes
from support.crowd import Crowd, together
from support.database import Database, Session, until
from support.lease_scenes import claim
from support.oracle import Oracle

from inturn.applier import Applier, Command, Fleet

TABLES = ("ticket", "key_mark", "turn", "key_sequence", "command_log", "wake_hint", "skip")
REWRITE = (
    "VACUUM FULL inturn.{table}",
    "REINDEX TABLE inturn.{table}",
    "CLUSTER inturn.{table} USING {index}",
)
MORE = ("REINDEX TABLE CONCURRENTLY inturn.{table}", "VACUUM ANALYZE inturn.{table}")
#: Who waits for locks on tables may meet a deadlock with maintenance, and tries again as applications do:
#: mostly the others, or maintenance would get nowhere.
_OPTIONS, _MAINTAINING = "-c deadlock_timeout=10ms", "-c deadlock_timeout=200ms"
_HOT = "floor(30 * power(random(), 3))"


class Storm:
    """A crowd of every kind at work, each in a thread of its own, while everything is maintained."""

    def __init__(self, database: Database) -> None:
        self.oracle, self.crowd = Oracle(database), Crowd(database)
        self._database = database
        #: Nobody appends any more; nothing is left to apply.
        self._over, self._drained = threading.Event(), threading.Event()
        self.rounds = self.deadlocks = 0

    def run(self, maintenance: Sequence[str], seconds: float) -> None:
        """Maintain all tables again and again for so long, once at least; then drain what is left."""
        works = [
            partial(self._repeat, self._call, self._over),
            partial(self._repeat, self._call, self._over),
            partial(self._repeat, self._call_on_snapshots, self._over),
            partial(self._repeat, self._poison, self._over),
            partial(self._repeat, self._operate, self._over),
            partial(self._repeat, self._apply, self._drained),
            partial(self._repeat, self._apply, self._drained),
            partial(self._repeat, self._lease, self._drained),
            partial(self._maintain, maintenance, seconds),
        ]
        together([partial(self._ending_all, work) for work in works])

    def _ending_all(self, work: Callable[[], None]) -> None:
        """Do the work; if it fails, the others end too."""
        try:
            work()
        except BaseException:
            self._over.set()
            self._drained.set()
            raise

    def _maintain(self, maintenance: Sequence[str], seconds: float) -> None:
        over_at = time.monotonic() + seconds
        session = self._database.session(autocommit=True, options=_MAINTAINING)
        while (not self._over.is_set() and time.monotonic() < over_at) or not self.rounds:
            for how, table in itertools.product(maintenance, TABLES):
                index = "wake_hint_left" if table == "wake_hint" else f"{table}_pkey"
                statement = how.format(table=table, index=index)
                until(partial(self._done, session, statement), statement)
            self.rounds += 1
        self._over.set()
        until(self._is_drained, "drained", patience=60 + seconds)
        self._drained.set()

    def _is_drained(self) -> bool:
        with suppress(psycopg.DatabaseError):
            self._database.execute(
                "SELECT inturn.resume(topic, key) FROM inturn.key_cursor c"
                " WHERE inturn.key_state(c) = 'paused'"
            )
            self._database.execute(
                "SELECT inturn.skip(topic, key, applied_seq + 1, 'poison') FROM inturn.key_cursor"
                " WHERE held_at IS NOT NULL"
            )
        left = "SELECT EXISTS (SELECT FROM inturn.wake_hint) OR EXISTS (SELECT FROM inturn.ticket)"
        return not self._database.value(left)

    def _done(self, session: Session, query: str, parameters: list[Any] | None = None) -> bool:
        """Run a statement; return whether it met no deadlock."""
        try:
            session.execute(query, parameters)
        except DeadlockDetected:
            self.deadlocks += 1
            return False
        return True

    def _repeat(self, work: Callable[[Session], None], over: threading.Event) -> None:
        session = self._database.session(autocommit=True, options=_OPTIONS)
        while not over.is_set():
            try:
                work(session)
            except (DeadlockDetected, SerializationFailure):
                self.deadlocks += 1

    def _call(self, session: Session) -> None:
        for topic, prefix in (("orders", "k"), ("parcels", "p")):
            session.execute(f"CALL app.call('{topic}', 5, 30, '{prefix}')")
        self._over.wait(0.02)  # or the appliers would be far behind at the end

    def _call_on_snapshots(self, session: Session) -> None:
        session.connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with session.connection.transaction():
            session.execute(f"SELECT app.append('orders', 'k' || {_HOT})")

    def _poison(self, session: Session) -> None:
        session.execute(f"SELECT app.append('orders', 'f' || {_HOT}, 'fail')")
        session.execute(f"SELECT app.append('orders', 'f' || {_HOT})")
        self._over.wait(0.01)

    def _operate(self, session: Session) -> None:
        session.execute("SET lock_timeout = '50ms'")
        for action in ("pause(topic, key)", "resume(topic, key)", "skip(topic, key, applied_seq + 1, 'no')"):
            with suppress(psycopg.DatabaseError):
                session.execute(
                    f"SELECT inturn.{action} FROM inturn.key_cursor WHERE key LIKE 'f%'"
                    " ORDER BY random() LIMIT 1"
                )
        self._over.wait(0.01)

    def _apply(self, session: Session) -> None:
        session.execute("CALL inturn.apply(max_seconds => 1)")
        self._drained.wait(0.001)

    def _lease(self, session: Session) -> None:
        for lease in claim(session, 2):
            try:
                for seq in lease.seqs:
                    self._report(session, "SELECT app.effect(%s, %s, %s)", [lease.key, seq, lease.epoch])
                    self._report(session, *lease.advance(seq))
                self._report(session, *lease.step("release"))
            except psycopg.Error as error:
                if error.sqlstate != "IT030":  # a pause has ended it, or it ran out
                    raise
        self._drained.wait(0.01)

    def _report(self, session: Session, query: str, parameters: list[Any]) -> None:
        until(partial(self._done, session, query, parameters), "reported")


def _write_witness(connection: psycopg.Connection[Any], command: Command) -> None:
    connection.execute(
        "INSERT INTO app.witness (key, seq, name) VALUES (%s, %s, %s)",
        [command.key, command.seq, command.name],
    )


def _maintain(database: Database, maintenance: Sequence[str], seconds: float) -> Storm:
    """Let the storm go by under the oracle's eyes, beside a fleet of Python workers too."""
    database.execute(
        "SELECT inturn.create_topic('parcels');"
        "SELECT inturn.set_topic('orders', max_attempts => 3, backoff_base => '1 ms', lease => '2 seconds')"
    )
    applier = Applier()
    applier.handler("parcels")(_write_witness)
    storm = Storm(database)
    fleet = Fleet(database.applier_dsn, applier, workers=2)
    fleet.start()
    try:
        with storm.oracle.watching(seconds_between=0.2):
            storm.run(maintenance, seconds)
    finally:
        outcome = fleet.end(grace=20)
    assert outcome.error is None
    print("rounds", storm.rounds, "deadlocks", storm.deadlocks)
    return storm


@sizes("seconds", 2, rest=5)
def test_p1_p7_maintenance_of_every_table_in_the_middle_of_it_all(witness: Database, seconds: float) -> None:
    storm = _maintain(witness, REWRITE, seconds)
    assert storm.oracle.check_drained("p%") > 20 * seconds
    assert storm.oracle.check_drained() > 100 * seconds
    assert witness.value("SELECT count(*) FROM app.outside") > 0
    assert witness.value("SELECT count(*) FROM inturn.turn WHERE outcome = 'held'") > 0


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_p1_p7_maintenance_for_minutes(witness: Database) -> None:
    storm = _maintain(witness, REWRITE + MORE, seconds=180)
    assert storm.rounds > 2
    assert storm.oracle.check_drained("p%") > 5_000
    assert storm.oracle.check_drained() > 20_000
