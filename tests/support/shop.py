"""An application: topic `shop`, whose handlers write into an append-only witness and wait at a gate."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import psycopg

from inturn.applier import Applier, Command, Fleet, Outcome, Skip, pacing
from inturn.applier.inside import visits
from support.database import Database, Session, until
from support.race import replace_in

if TYPE_CHECKING:  # an applier's process imports this module
    import pytest

TOPIC = "shop"
GATE = 4242

_SCHEMA = """
    CREATE SCHEMA app;
    CREATE TABLE app.witness (
        id bigserial PRIMARY KEY, key text COLLATE "C" NOT NULL, seq bigint NOT NULL,
        name text NOT NULL, xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
        at timestamptz NOT NULL DEFAULT clock_timestamp());
    CREATE FUNCTION app.pass_gate() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_advisory_xact_lock_shared(4242); RETURN NULL; END $$;
    -- Deferred: the backend waits inside COMMIT.
    CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON app.witness DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (NEW.name = 'commit') EXECUTE FUNCTION app.pass_gate();
    CREATE FUNCTION app.apply(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF command.name = 'before' THEN
            PERFORM pg_advisory_xact_lock_shared(4242);
        END IF;
        INSERT INTO app.witness (key, seq, name) VALUES (command.key, command.seq, command.name);
        IF command.name = 'after' THEN
            PERFORM pg_advisory_xact_lock_shared(4242);
        ELSIF command.name = 'slow' THEN
            PERFORM pg_sleep(0.02);
        ELSIF command.name = 'fail' THEN
            RAISE EXCEPTION 'refused %', command.key;
        END IF;
    END $$;
    CREATE FUNCTION app.apply_all(commands inturn.command[]) RETURNS integer LANGUAGE plpgsql AS $$
    DECLARE
        command inturn.command;
    BEGIN
        FOREACH command IN ARRAY commands LOOP
            PERFORM app.apply(command);
        END LOOP;
        RETURN cardinality(commands);
    END $$;
"""

Target: TypeAlias = Literal["python", "sql", "python in batches", "sql in batches"]
TARGETS: tuple[Target, ...] = get_args(Target)

applier = Applier()
#: The same, for several commands at a time.
batches = Applier()


def write_witness(connection: psycopg.Connection[Any], command: Command) -> None:
    """Write the effect of a command."""
    connection.execute(
        "INSERT INTO app.witness (key, seq, name) VALUES (%s, %s, %s)",
        (command.key, command.seq, command.name),
    )


def pass_gate(connection: psycopg.Connection[Any]) -> None:
    """Wait while the gate is shut."""
    connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (GATE,))


@applier.handler(TOPIC)
def apply(connection: psycopg.Connection[Any], command: Command) -> None:
    """Write the effect; by its name, wait at the gate `before` or `after` it or in `commit`, fail or skip."""
    if command.name == "before":
        pass_gate(connection)
    write_witness(connection, command)
    if command.name == "after":
        pass_gate(connection)
    elif command.name == "log":
        logging.getLogger("shop").info("counting")
    elif command.name == "die":
        signal.raise_signal(signal.SIGKILL)  # whichever number the process takes itself for
    elif command.name == "fail":
        raise ValueError(f"refused {command.key}")
    elif command.name == "skip":
        raise Skip("not wanted")


@batches.batch_handler(TOPIC)
def apply_all_of(connection: psycopg.Connection[Any], commands: list[Command]) -> int:
    """Do the same for each."""
    for command in commands:
        apply(connection, command)
    return len(commands)


def open_shop(database: Database, *, target: Target = "python", settings: str = "") -> Database:
    """Create the witness and the topic; settings are further arguments of create_topic, in SQL."""
    database.execute(_SCHEMA)
    # See handlers_of.
    database.execute(f"COMMENT ON SCHEMA app IS '{target}'")
    more = settings or "backoff_base => '10 ms'"
    sql = "sql:app.apply_all" if target == "sql in batches" else "sql:app.apply"
    name = "python" if target.startswith("python") else sql
    database.execute(f"SELECT inturn.create_topic('{TOPIC}', '{name}', {more})")
    return database


def append(database: Database, key: str, *names: str) -> None:
    """Append commands to a key, in one transaction of their own."""
    database.execute(
        "SELECT inturn.append_many(%s, array_fill(%s::text, ARRAY[%s]), %s::text[])",
        [TOPIC, key, len(names), list(names)],
    )


def append_keys(database: Database, count: int, *, prefix: str = "k", name: str = "insert") -> None:
    """Append one command to each of many keys."""
    database.execute(
        "SELECT inturn.append_many(%s, array_agg(%s || n), array_agg(%s::text))"
        " FROM generate_series(1, %s) n",
        [TOPIC, prefix, name, count],
    )


def applied(database: Database, key: str) -> list[int]:
    """Return the seqs of the key's effects, in the order in which they happened."""
    rows = database.execute("SELECT seq FROM app.witness WHERE key = %s ORDER BY id", [key])
    return [seq for (seq,) in rows]


def wait_applied(database: Database, key: str, name: str = "insert", patience: float = 30) -> float:
    """Wait for an effect on a key; return when it happened, in seconds as time.time() counts them."""
    rows = until(
        lambda: database.execute(
            "SELECT extract(epoch FROM at)::float8 FROM app.witness WHERE key = %s AND name = %s",
            [key, name],
        ),
        f"the effect of {name} on {key}",
        patience,
    )
    return float(rows[0][0])


def count_applied(database: Database) -> int:
    count: int = database.value("SELECT count(*) FROM app.witness")
    return count


def assert_once_and_in_turn(database: Database) -> None:
    """Every committed command took effect once, each key's in order; nothing else did."""
    out_of_turn = database.execute("""
        SELECT key, seq, n FROM (
            SELECT key, seq, row_number() OVER (PARTITION BY key ORDER BY id) AS n FROM app.witness
        ) w WHERE seq <> n LIMIT 5""")
    assert out_of_turn == []
    differing = database.execute("""
        (SELECT 'not applied', key, seq, name FROM inturn.command_log
         EXCEPT SELECT 'not applied', key, seq, name FROM app.witness)
        UNION ALL
        (SELECT 'not appended', key, seq, name FROM app.witness
         EXCEPT SELECT 'not appended', key, seq, name FROM inturn.command_log) LIMIT 5""")
    assert differing == []
    left_behind = database.execute("""
        SELECT key, applied_seq, ready_at FROM inturn.key_cursor c
        WHERE ready_at IS NOT NULL OR applied_seq <> (
            SELECT max(seq) FROM inturn.command_log l WHERE l.topic = c.topic AND l.key = c.key)
        LIMIT 5""")
    assert left_behind == []


@contextmanager
def gate_shut(database: Database) -> Iterator[Session]:
    """Shut the gate; rolling the session back opens it, as does leaving the block."""
    session = database.session()
    session.execute("SELECT pg_advisory_xact_lock(%s)", [GATE])
    try:
        yield session
    finally:
        if not session.connection.closed:
            session.rollback()


def wait_at_gate(database: Database, count: int = 1) -> list[int]:
    """Wait until so many backends stand at the gate; return their pids."""

    def standing() -> list[int]:
        rows = database.execute(
            "SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
            " WHERE d.datname = %s AND l.locktype = 'advisory' AND NOT l.granted",
            [database.name],
        )
        pids = [pid for (pid,) in rows]
        return pids if len(pids) >= count else []

    found: list[int] = until(standing, f"{count} at the gate")
    return found


def handlers_of(database: Database) -> Applier | None:
    """Return the handlers for the shop's topic; None when its target is a SQL function."""
    target = database.value("SELECT target FROM inturn.topic WHERE name = %s", [TOPIC])
    if target != "python":
        return None
    opened_as = database.value("SELECT obj_description(to_regnamespace('app'), 'pg_namespace')")
    return batches if opened_as == "python in batches" else applier


@contextmanager
def steady_workers() -> Iterator[None]:
    """Make workers as they are once they have run for a while: see STARTS_CAREFULLY."""
    visits.STARTS_CAREFULLY = False
    try:
        yield
    finally:
        visits.STARTS_CAREFULLY = True


def apply_all(
    database: Database, handlers: Applier | None = None, *, dsn: str | None = None, **options: Any
) -> Outcome:
    """Drain with a fleet of this process; return its outcome."""
    fleet = Fleet(dsn or database.applier_dsn, handlers or handlers_of(database), drain=True, **options)
    with steady_workers():
        fleet.start()
    assert fleet.wait(60)
    outcome = fleet.end(0)
    if outcome.error is not None:
        raise outcome.error
    return outcome


@contextmanager
def at_work(
    database: Database,
    handlers: Applier | None = None,
    *,
    dsn: str | None = None,
    steady: bool = True,
    **options: Any,
) -> Iterator[Fleet]:
    """Run a fleet of this process as a daemon while the block runs; steady: as if it had run for a while."""
    fleet = Fleet(dsn or database.applier_dsn, handlers or handlers_of(database), **options)
    with steady_workers() if steady else nullcontext():
        fleet.start()
    try:
        yield fleet
    finally:
        fleet.end(10)


def never_poll(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let idle workers of this process look again only when they are notified, or a key falls due.

    What they do then, they do not by polling, however long it takes.
    """
    for name in ("FIRST_POLL_SECONDS", "LAST_POLL_SECONDS", "ANNOUNCED_SECONDS"):
        monkeypatch.setattr(pacing, name, 3600.0)
    replace_in(database, "announce_sleep", ("interval '2 seconds'", "interval '2 hours'"))


def after_restart(database: Database) -> Database:
    """Let the database's own connections learn that its server is another now."""
    database.reconnect()
    return database
