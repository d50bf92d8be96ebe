"""A probe: appends commands at a pace, and takes the time from each commit to the start of its handler."""

from __future__ import annotations

import time
from typing import Any

import psycopg
from support.database import Database, until

from inturn.applier import Applier, Command
from inturn.outbox import append

#: The keys of a probe begin with this; their commands alone are timed.
PREFIX = "probe-"
#: A SQL target that says when it began.
SQL_TARGET = """
CREATE TABLE app.started (number integer, at timestamptz);
CREATE FUNCTION app.start(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF starts_with(command.key, 'probe-') THEN
        INSERT INTO app.started VALUES ((command.payload ->> 'number')::integer, clock_timestamp());
    END IF;
    INSERT INTO app.effect VALUES (command.key, command.seq);
END $$;
"""
#: So many commands come first, for connections and plans, and are not timed.
_WARMING = 5


class Probe:
    """Times the commands of one topic, whose target is Python or SQL_TARGET. The clock is time.time()."""

    def __init__(self, database: Database, topic: str) -> None:
        self._database = database
        self._topic = topic
        self._last = 0
        self._started: dict[int, float] = {}
        self.applier = Applier()

        @self.applier.handler(topic)
        def handle(connection: psycopg.Connection[Any], command: Command) -> None:
            if command.key.startswith(PREFIX):
                self._started[command.payload["number"]] = time.time()
            connection.execute("INSERT INTO app.effect VALUES (%s, %s)", (command.key, command.seq))

    def milliseconds(self, *, keys: int, count: int, pause: float, by_sql: bool = False) -> list[float]:
        """Append so many commands over so many keys, one after each pause; return the times, sorted."""
        committed: dict[int, float] = {}
        with psycopg.connect(self._database.caller_dsn) as connection:
            next_at = time.monotonic()
            for warming in [True] * _WARMING + [False] * count:
                next_at = max(next_at + pause, time.monotonic())
                time.sleep(max(next_at - time.monotonic(), 0))
                self._last = number = self._last + 1
                append(connection, self._topic, f"{PREFIX}{number % keys}", "insert", {"number": number})
                connection.commit()
                if not warming:
                    committed[number] = time.time()

        def all_started() -> dict[int, float] | None:
            started = self._started_in_sql() if by_sql else self._started.copy()
            return started if committed.keys() <= started.keys() else None

        started = until(all_started, "the last commands of the probe", 60)
        # One that began before its caller was told of the commit did not wait at all.
        return sorted(max(started[number] - at, 0.0) * 1000 for number, at in committed.items())

    def _started_in_sql(self) -> dict[int, float]:
        # Not in a tight loop beside who is measured.
        time.sleep(0.1)
        rows = self._database.execute("SELECT number, extract(epoch FROM at)::float8 FROM app.started")
        return dict(rows)


def percentile(times: list[float], percent: float) -> float:
    """Return the time that so many percent of the sorted times do not exceed."""
    return times[min(int(len(times) * percent / 100), len(times) - 1)]
