"""What is measured: each function makes its own database content and returns rates or times."""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

import psycopg
from support.database import Database
from support.roles import OWNER

from inturn.applier import Applier, Command, Fleet
from inturn.outbox import append

PREPARE = """
CREATE SCHEMA app;
CREATE TABLE app.plain (
    id bigserial PRIMARY KEY, topic text, key text, name text, payload jsonb,
    created_at timestamptz DEFAULT clock_timestamp());
CREATE TABLE app.effect (key text, seq bigint);
CREATE FUNCTION app.apply_order(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO app.effect VALUES (command.key, command.seq);
END $$;
SELECT inturn.create_topic('orders', 'sql:app.apply_order');
SELECT inturn.create_topic('python');
SELECT inturn.create_topic('arrival', 'sql:app.apply_order', numbering => 'arrival');
SELECT inturn.create_topic('arrival-python', numbering => 'arrival');
"""


def append_commands(database: Database, topic: str, keys: int, commands: int, prefix: str) -> None:
    """Append commands, spread evenly over so many new keys."""
    database.execute(
        "SELECT count(inturn.append(%s, %s || (i %% %s), 'insert', '{\"amount\": 1}'))"
        " FROM generate_series(1, %s) i",
        [topic, prefix, keys, commands],
    )


def drain_by_sql(database: Database, keys: int, commands: int, prefix: str) -> float:
    """Return the commands a second of one backend's CALL inturn.apply(), each writing a row."""
    append_commands(database, "orders", keys, commands, prefix)
    started_at = time.monotonic()
    applied = database.value("CALL inturn.apply()")
    seconds = time.monotonic() - started_at
    assert applied == commands, (applied, commands)
    return commands / seconds


def drain_by_python(database: Database, keys: int, commands: int, prefix: str) -> float:
    """Return the commands a second of one process with one worker, each writing a row."""
    append_commands(database, "python", keys, commands, prefix)
    outcome = _drain(database, _row_writer())
    assert outcome == commands, (outcome, commands)
    started_at = time.monotonic()
    append_commands(database, "python", keys, commands, prefix)
    started_at = time.monotonic()
    assert _drain(database, _row_writer()) == commands
    return commands / (time.monotonic() - started_at)


def numbered(database: Database, keys: int, commands: int) -> float:
    """Return the commands a second that passes number, of commands that have arrived on so many keys."""
    database.execute("CALL inturn.apply()")
    append_commands(database, "arrival", keys, commands, "number")
    started_at = time.monotonic()
    left = commands
    while left:
        left -= database.value("SELECT inturn._number_arrivals('{arrival}')")
    seconds = time.monotonic() - started_at
    database.execute("CALL inturn.apply()")
    return commands / seconds


def latency_milliseconds(database: Database, commands: int, topic: str = "python") -> list[float]:
    """Return, sorted, the times from an append's commit to its handler's start, on an idle system."""
    started: dict[str, float] = {}
    arrived = threading.Event()
    applier = Applier()

    @applier.handler(topic)
    def handle(_: psycopg.Connection[Any], command: Command) -> None:
        started[command.key] = time.monotonic()
        arrived.set()

    fleet = Fleet(database.applier_dsn, applier, topics=[topic])
    fleet.start()
    times = []
    with psycopg.connect(database.caller_dsn) as connection:
        for number in range(commands):
            # Longer than the polls of a worker that has just had work: it sleeps.
            time.sleep(0.3)
            arrived.clear()
            append(connection, topic, f"idle-{number}", "insert")
            connection.commit()
            committed_at = time.monotonic()
            assert arrived.wait(10)
            times.append((started[f"idle-{number}"] - committed_at) * 1000)
    fleet.end(5)
    return sorted(times)


def claim_milliseconds(database: Database, waiting: int) -> float:
    """Return the median time of a claim, and its rollback, beside so many waiting keys."""
    database.execute("DELETE FROM inturn.ticket WHERE topic = 'claim'")
    database.execute(
        "INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at)"
        " SELECT 'claim', 'k' || i, 0, 0, clock_timestamp() FROM generate_series(1, %s) i",
        [waiting],
    )
    times = []
    connection = database.connect(autocommit=False, user=OWNER)
    for _ in range(300):
        started_at = time.monotonic()
        connection.execute("SELECT * FROM inturn.claim('claim')").fetchall()
        times.append((time.monotonic() - started_at) * 1000)
        connection.rollback()
    return statistics.median(times)


def drain_under_snapshot(database: Database, seconds: float) -> tuple[float, float]:
    """Return the keys a second at the start and at the end of a drain while a snapshot is held."""
    append_commands(database, "orders", 400_000, 400_000, "snapshot")
    holder = database.connect(autocommit=False, user=OWNER)
    holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    holder.execute("SELECT txid_current(), count(*) FROM inturn.topic")
    rates = []
    for _ in range(2):
        for repeat in range(int(seconds / 2)):
            started_at = time.monotonic()
            applied = database.value("CALL inturn.apply(max_seconds => 1)")
            if repeat == 0:
                rates.append(applied / (time.monotonic() - started_at))
    holder.rollback()
    database.execute("CALL inturn.apply()")
    return rates[0], rates[1]


def _row_writer() -> Applier:
    applier = Applier()

    @applier.handler("python")
    def handle(connection: psycopg.Connection[Any], command: Command) -> None:
        connection.execute("INSERT INTO app.effect VALUES (%s, %s)", (command.key, command.seq))

    return applier


def drain_hot_key(database: Database, commands: int) -> tuple[float, float]:
    """Return the commands a second on one deep key by a batch handler, and by one for single commands.

    One process, one worker, from its start on, so that the first 20 turns are taken with care, one command
    a call. At most 1,000 commands a turn, each of which writes a row. The single handler gets a tenth.
    """
    database.execute("SELECT inturn.set_topic('python', batch_commands => 1000)")
    rates = []
    for applier, count in ((_batch_writer(), commands), (_row_writer(), commands // 10)):
        append_commands(database, "python", 1, count, f"hot{count}-")
        started_at = time.monotonic()
        assert _drain(database, applier) == count
        rates.append(count / (time.monotonic() - started_at))
    database.execute("SELECT inturn.set_topic('python', batch_commands => 100)")
    return rates[0], rates[1]


def _batch_writer() -> Applier:
    applier = Applier()

    @applier.batch_handler("python")
    def handle(connection: psycopg.Connection[Any], commands: list[Command]) -> None:
        connection.execute(
            "INSERT INTO app.effect SELECT * FROM unnest(%s::text[], %s::bigint[])",
            ([command.key for command in commands], [command.seq for command in commands]),
        )

    return applier


def _drain(database: Database, applier: Applier) -> int:
    fleet = Fleet(database.applier_dsn, applier, topics=["python"], drain=True)
    fleet.start()
    while not fleet.wait(60):
        pass
    return fleet.end(5).commands
