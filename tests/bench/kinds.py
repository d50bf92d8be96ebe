"""Kinds of applier at work in the background, each on a topic of its own, and how much each has applied."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from support.database import Database, Session

from bench.ground import at_work, row_writer
from inturn.applier import Fleet

#: A SQL target that numbers its rows, and a client that works by lease, command by command.
APPLICATION = """
CREATE TABLE app.called (id bigserial, key text, seq bigint);
CREATE FUNCTION app.call(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO app.called (key, seq) VALUES (command.key, command.seq);
END $$;
CREATE SEQUENCE app.leased;
CREATE PROCEDURE app.work_by_lease(topic text, max_keys integer, seconds double precision)
LANGUAGE plpgsql AS $$
DECLARE
    stop_at constant timestamptz := clock_timestamp() + make_interval(secs => seconds);
    claimed record;
BEGIN
    WHILE clock_timestamp() < stop_at LOOP
        SELECT array_agg(c.key) AS keys, array_agg(c.epoch) AS epochs, array_agg(c.seq) AS seqs
        INTO claimed FROM inturn.claim(ARRAY[topic], max_keys, NULL, NULL) c;
        COMMIT;
        IF claimed.keys IS NULL THEN
            PERFORM pg_sleep(0.005);
        END IF;
        FOR i IN 1 .. coalesce(cardinality(claimed.keys), 0) LOOP
            PERFORM inturn.advance(topic, claimed.keys[i], claimed.epochs[i], claimed.seqs[i]),
                nextval('app.leased');
            COMMIT;
            IF claimed.keys[i] IS DISTINCT FROM claimed.keys[i + 1] THEN
                PERFORM inturn.release(topic, claimed.keys[i], claimed.epochs[i]);
                COMMIT;
            END IF;
        END LOOP;
    END LOOP;
END $$;
SELECT inturn.create_topic('call', 'sql:app.call');
SELECT inturn.create_topic('lease');
"""
#: How long one CALL goes on, and how long after its end the next begins, as by a scheduler; in seconds.
_CALL_SECONDS, _CALL_PAUSE = 10.0, 1.0


class ByCall:
    """CALL inturn.apply(), and again a moment after it has ended."""

    name, topic = "CALL", "call"

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def at_work(self) -> Iterator[None]:
        query = f"CALL inturn.apply(ARRAY['{self.topic}'], {_CALL_SECONDS})"
        with _repeating(self._database.session(autocommit=True), query, _CALL_PAUSE):
            yield

    def applied(self) -> int:
        return _last_value(self._database, "app.called_id_seq")


class ByPython:
    """A worker with a handler in Python."""

    name, topic = "Python", "python"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._fleet: Fleet | None = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with at_work(self._database, row_writer([self.topic]), topics=[self.topic]) as self._fleet:
            yield

    def applied(self) -> int:
        return self._fleet.totals.commands if self._fleet else 0


class ByLease:
    """A client that claims by lease, in SQL: each command is reported by a transaction of its own."""

    name, topic = "leases in SQL", "lease"

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextmanager
    def at_work(self) -> Iterator[None]:
        query = f"CALL app.work_by_lease('{self.topic}', 4, 1)"
        with _repeating(self._database.session(autocommit=True), query, 0):
            yield

    def applied(self) -> int:
        return _last_value(self._database, "app.leased")


Kind = ByCall | ByPython | ByLease
KINDS: dict[str, Callable[[Database], Kind]] = {"call": ByCall, "python": ByPython, "lease": ByLease}


@contextmanager
def _repeating(session: Session, query: str, pause: float) -> Iterator[None]:
    """Run a statement over and over, a pause after each, while the block runs; raise its error then."""
    over = threading.Event()

    def repeat() -> None:
        while not over.is_set():
            session.execute(query)
            over.wait(pause)

    with ThreadPoolExecutor(1) as pool:
        repeating = pool.submit(repeat)
        try:
            yield
        finally:
            over.set()
            try:
                repeating.result(_CALL_SECONDS + 5)
            finally:
                session.connection.cancel_safe()


def _last_value(database: Database, sequence: str) -> int:
    number: int = database.value(f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {sequence}")
    return number
