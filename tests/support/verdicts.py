"""Topics whose commands say in their payloads what is asked for in place of success: see test_verdicts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from inturn.applier import Applier, Command, Fleet, Hold, Outcome, Retry, Skip
from support.database import Database

Connection = psycopg.Connection[Any]

TARGET = """
    -- What a payload says: state and detail of what is raised after the effect, while attempt <= until.
    CREATE FUNCTION app.ask(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO app.witness (key, seq, name) VALUES (command.key, command.seq, command.name);
        IF command.payload ? 'state'
           AND command.attempt <= coalesce((command.payload->>'until')::integer, 99) THEN
            RAISE EXCEPTION USING ERRCODE = command.payload->>'state', MESSAGE = command.payload->>'reason',
                DETAIL = coalesce(command.payload->>'detail', '');
        END IF;
    END $$;
"""
#: Who applies: a SQL target; a Python handler that raises; one that lets a SQL function's error pass.
BY = ["sql", "python", "function"]


def _handlers() -> Applier:
    applier = Applier()

    @applier.handler("python")
    def ask(connection: Connection, command: Command) -> None:
        connection.execute(
            "INSERT INTO app.witness (key, seq, name) VALUES (%s, %s, %s)",
            [command.key, command.seq, command.name],
        )
        said = command.payload
        if "state" not in said or command.attempt > said.get("until", 99):
            return
        if said["state"] == "IT020":
            after = said.get("detail")
            raise Retry(said["reason"], after=float(after.split()[0]) if after else None)
        raise {"IT021": Hold, "IT022": Skip}.get(said["state"], ValueError)(said["reason"])

    @applier.handler("function")
    def call(connection: Connection, command: Command) -> None:
        connection.execute(
            "SELECT app.ask(ROW(%s, %s, %s, %s, %s, now(), %s)::inturn.command)",
            (*_place(command), command.name, Jsonb(command.payload), command.attempt),
        )

    return applier


def _place(command: Command) -> tuple[str, str, int]:
    return command.topic, command.key, command.seq


class Way:
    """A way of applying: a topic, in whose keys its name is."""

    def __init__(self, database: Database, topic: str) -> None:
        self._database = database
        self.topic = topic
        target = "sql:app.ask" if topic == "sql" else "python"
        database.execute(
            "SELECT inturn.create_topic(%s, %s, max_attempts => 3, backoff_base => '1 ms')", [topic, target]
        )

    def key(self, key: str) -> str:
        return f"{key} by {self.topic}"

    def append(self, key: str = "x", **payload: Any) -> None:
        append(self._database, self.topic, self.key(key), **payload)

    def drain(self) -> Outcome:
        return drain(self._database, self.topic)

    def effects(self, key: str = "x") -> list[int]:
        return effects(self._database, self.key(key))

    def cursor(self, *columns: str, key: str = "x") -> Any:
        return cursor(self._database, *columns, key=self.key(key))

    def skips(self) -> list[tuple[Any, ...]]:
        return self._database.execute(
            "SELECT split_part(key, ' ', 1), seq, skipped_by, reason FROM inturn.skip WHERE topic = %s"
            " ORDER BY key, seq",
            [self.topic],
        )

    def outcomes(self, key: str = "x") -> list[str]:
        rows = self._database.execute(
            "SELECT outcome FROM inturn.turn WHERE key = %s AND outcome <> 'idle' ORDER BY epoch",
            [self.key(key)],
        )
        return [outcome for (outcome,) in rows]


def append(database: Database, topic: str, key: str = "x", **payload: Any) -> None:
    database.execute("SELECT inturn.append(%s, %s, 'do', %s)", [topic, key, Jsonb(payload)])


def handlers_of(topic: str) -> Applier | None:
    """The handlers of one topic: an applier refuses to start without any of its topics."""
    if topic == "sql":
        return None
    applier = Applier()
    applier.handler(topic)(_handlers().find(Command(topic, "x", 1, "do", {}, datetime.now(UTC), 1, 1)))
    return applier


def drain(database: Database, topic: str) -> Outcome:
    fleet = Fleet(database.applier_dsn, handlers_of(topic), topics=[topic], drain=True)
    fleet.start()
    assert fleet.wait(60)
    outcome = fleet.end(0)
    assert outcome.error is None
    return outcome


def effects(database: Database, key: str) -> list[int]:
    rows = database.execute("SELECT seq FROM app.witness WHERE key = %s ORDER BY id", [key])
    return [seq for (seq,) in rows]


def cursor(database: Database, *columns: str, key: str = "x") -> Any:
    (row,) = database.execute(f"SELECT {', '.join(columns)} FROM inturn.key_cursor WHERE key = %s", [key])
    return row[0] if len(columns) == 1 else row
