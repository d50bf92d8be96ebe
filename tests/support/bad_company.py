"""One bad key beside healthy ones, of its topic and of another: every way to go wrong."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from inturn.applier import Applier, Command
from support.database import Database
from support.roles import APPLIER

#: The keys beside the bad one, in its topic and in the other.
HEALTHY, OTHERS = 30, 10
ATTEMPTS = 2
#: Where handlers take batches, how many commands of its key come before the bad one; one comes after it.
BESIDE = 2

CONSTRAINTS = """
    CREATE SCHEMA bad;
    CREATE TABLE bad.parent (id integer PRIMARY KEY);
    CREATE TABLE bad.child (parent integer REFERENCES bad.parent DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE bad.single (n integer UNIQUE DEFERRABLE INITIALLY DEFERRED);
    INSERT INTO bad.single VALUES (1);
    CREATE TABLE bad.late (n integer);
    CREATE FUNCTION bad.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'refused at the commit'; END $$;
    CREATE CONSTRAINT TRIGGER late AFTER INSERT ON bad.late DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION bad.refuse();
"""
_SCHEMA = """
    CREATE TABLE bad.witness (
        id bigserial PRIMARY KEY, topic text NOT NULL, key text NOT NULL, seq bigint NOT NULL,
        UNIQUE (topic, key, seq));
    CREATE FUNCTION bad.refuse_turn() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'nothing can be written of %', NEW.key; END $$;
"""
_SQL_TARGET = """
    CREATE FUNCTION bad.apply(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO bad.witness (topic, key, seq) VALUES (command.topic, command.key, command.seq);
        IF command.key = 'bad' AND command.name = 'insert' THEN
            %s
        END IF;
    END $$;
    CREATE FUNCTION bad.apply_all(commands inturn.command[]) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        command inturn.command;
    BEGIN
        FOREACH command IN ARRAY commands LOOP
            PERFORM bad.apply(command);
        END LOOP;
    END $$;
"""
_Effect = Callable[[psycopg.Connection[Any], Command], object]


@dataclass(frozen=True)
class Fault:
    """One way to go wrong.

    Attributes:
        error: what the key's error says, in part.
        python: what the handler of the bad key does; None: it has no part in it.
        sql: the same, of a SQL target.
        payload: of the bad command.
        before: SQL that is run once the topics are there.
        session: settings of the database.
        state: what becomes of the key.
        keeps: how many effects of the bad key stay, at the most: what its handler has committed itself.
        alone: it makes its neighbours in a batch go wrong too, so there are none.
        under_call: what the key's error says under CALL, in part, if that differs.
        since: the version of PostgreSQL that has it.
    """

    error: str
    python: _Effect | None = None
    sql: str | None = None
    payload: str = "{}"
    before: str = ""
    session: str = ""
    state: str = "held"
    keeps: int = 0
    alone: bool = False
    under_call: str | None = None
    since: int = 0


#: Deeper than Python 3.12 reads; 3.13 reads whatever PostgreSQL takes.
NESTED = "[" * 5000 + "]" * 5000


def kinds_here(faults: Mapping[str, Any]) -> list[str]:
    """Return the kinds that there are with the server and the Python that the tests run on."""
    version = int(os.environ.get("INTURN_TEST_PG", "18"))
    return [
        kind
        for kind, fault in faults.items()
        if getattr(fault, "since", 0) <= version and not (fault.payload == NESTED and _reads(NESTED))
    ]


def _reads(payload: str) -> bool:
    try:
        json.loads(payload)
    except RecursionError:
        return False
    return True


def _runs(statement: str) -> _Effect:
    def effect(connection: psycopg.Connection[Any], _: Command) -> None:
        connection.execute(statement)

    return effect


def _raises(error: BaseException) -> _Effect:
    def effect(_connection: psycopg.Connection[Any], _command: Command) -> None:
        raise error

    return effect


def _closes_and_raises(connection: psycopg.Connection[Any], _: Command) -> None:
    connection.close()
    raise ValueError("and raises")


def _commits_and_sets(mode: str, value: object) -> _Effect:
    """Return what sets how the next transactions begin, which the driver allows between two of them."""

    def effect(connection: psycopg.Connection[Any], _: Command) -> None:
        connection.execute("COMMIT")
        setattr(connection, mode, value)
        connection.execute("SELECT")

    return effect


def _sets_isolation_level(connection: psycopg.Connection[Any], _: Command) -> None:
    connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE


def _in_sqlalchemys_session(connection: psycopg.Connection[Any], _: Command) -> None:
    from sqlalchemy import create_engine, text  # not for the processes that import this module
    from sqlalchemy.orm import Session

    with Session(create_engine("postgresql+psycopg://", creator=lambda: connection)) as session:
        session.execute(text("INSERT INTO bad.single VALUES (2)"))
        session.commit()


def _in_sqlalchemys_autocommit(connection: psycopg.Connection[Any], _: Command) -> None:
    from sqlalchemy import create_engine, text

    engine = create_engine("postgresql+psycopg://", creator=lambda: connection, isolation_level="AUTOCOMMIT")
    with engine.connect() as connected:
        connected.execute(text("INSERT INTO bad.single VALUES (2)"))


#: What is referred to is open, whatever becomes of the handler.
_KEPT: list[object] = []


def _raises_in_a_stream(connection: psycopg.Connection[Any], _: Command) -> None:
    rows = connection.cursor().stream("SELECT generate_series(1, 3)")
    for _row in rows:
        raise ValueError("and raises")


def _leaves_a_stream(connection: psycopg.Connection[Any], _: Command) -> None:
    rows = connection.cursor().stream("SELECT generate_series(1, 3)")
    _KEPT.append(rows)
    next(iter(rows))


def _leaves_a_copy(connection: psycopg.Connection[Any], _: Command) -> None:
    copy = connection.cursor().copy("COPY (SELECT generate_series(1, 3)) TO STDOUT")
    _KEPT.append(copy)
    copy.__enter__()


def _leaves_a_pipeline(connection: psycopg.Connection[Any], _: Command) -> None:
    pipeline = connection.pipeline()
    _KEPT.append(pipeline)
    pipeline.__enter__()


def _leaves_a_block(connection: psycopg.Connection[Any], _: Command) -> None:
    block = connection.transaction()
    _KEPT.append(block)
    block.__enter__()


def _raises_in_a_block(connection: psycopg.Connection[Any], _: Command) -> None:
    block = connection.transaction()
    block.__enter__()
    raise ValueError("and raises")


def _rolls_back_and_raises(connection: psycopg.Connection[Any], _: Command) -> None:
    connection.execute("ROLLBACK")
    raise ValueError("and raises")


async def _async_body() -> None: ...


def _generator_body() -> Any:
    yield


def _both(statement: str, error: str, **more: Any) -> Fault:
    return Fault(error, _runs(statement), f"{statement};", **more)


_SLEEP = "SELECT pg_sleep(60)"
_ENDED = "ended the transaction"
#: What a command that has committed says when it is tried again, and is held.
_DONE_BEFORE = "witness_topic_key_seq_key"
#: Kinds that Python handlers and SQL targets share.
SHARED = {
    "a deferred foreign key": _both("INSERT INTO bad.child VALUES (7)", "child_parent_fkey"),
    "a deferred unique constraint": _both("INSERT INTO bad.single VALUES (1)", "single_n_key"),
    "a trigger that raises at COMMIT": _both("INSERT INTO bad.late VALUES (1)", "refused at the commit"),
    "SET TRANSACTION READ ONLY": _both("SET TRANSACTION READ ONLY", "read-only"),
    "SET TRANSACTION ISOLATION LEVEL": _both(
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "must be called before any query"
    ),
    "its own cancel": Fault(
        "canceling statement",
        _runs("SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(60)"),
        "PERFORM pg_cancel_backend(pg_backend_pid()), pg_sleep(60);",
    ),
    "a lock_timeout": Fault(
        "lock timeout",
        _runs("SELECT pg_advisory_xact_lock(77)"),
        "PERFORM pg_advisory_xact_lock(77);",
        session="lock_timeout = '300 ms'",
    ),
    "a statement_timeout": Fault(
        "statement timeout",
        _runs(_SLEEP),
        "PERFORM pg_sleep(60);",
        session="statement_timeout = '2 s'",
    ),
    "a transaction_timeout": Fault(
        "transaction timeout",
        _runs(_SLEEP),
        "PERFORM pg_sleep(60);",
        session="transaction_timeout = '3 s'",
        # It ends the session of the CALL, and with it who could say so.
        under_call="the lease of",
        since=17,
    ),
    "the end of its own session": Fault(
        "",  # who says so depends: the next connection, or whoever finds that its lease has run out
        _runs("SELECT pg_terminate_backend(pg_backend_pid())"),
        "PERFORM pg_terminate_backend(pg_backend_pid());",
        under_call="the lease of",
    ),
    "nothing can be written of it": Fault(
        "nothing can be written of bad",
        _runs("SELECT 1"),
        "NULL;",
        before="CREATE TRIGGER refuse BEFORE INSERT ON inturn.turn FOR EACH ROW WHEN (NEW.key = 'bad')"
        " EXECUTE FUNCTION bad.refuse_turn()",
        state="put off",
    ),
}
IN_PYTHON = {
    **SHARED,
    "an idle_in_transaction_session_timeout": Fault(
        "idle-in-transaction timeout",
        lambda _connection, _command: _wait(2.5),
        session="idle_in_transaction_session_timeout = '1500 ms'",
    ),
    "a number that Python cannot read": Fault("digits", payload='{"n": 1e5000}'),
    "a payload nested too deep": Fault("RecursionError", payload=NESTED),
    "close": Fault("closed", lambda connection, _: connection.close()),
    "close and an exception": Fault("and raises", _closes_and_raises),
    "COMMIT": Fault(_DONE_BEFORE, _runs("COMMIT"), alone=True, keeps=1),
    # What its batch does after that is in no transaction.
    "ROLLBACK": Fault(_ENDED, _runs("ROLLBACK"), keeps=1),
    "ROLLBACK and an exception": Fault(_ENDED, _rolls_back_and_raises),
    "COMMIT and BEGIN": Fault(_DONE_BEFORE, _runs("COMMIT; BEGIN"), alone=True, keeps=1),
    **{
        f"COMMIT and {said}": Fault(_DONE_BEFORE, _commits_and_sets(mode, value), alone=True, keeps=1)
        for said, mode, value in (
            ("another isolation_level", "isolation_level", psycopg.IsolationLevel.SERIALIZABLE),
            ("read_only", "read_only", True),
            ("deferrable", "deferrable", True),
            ("no autocommit", "autocommit", False),
        )
    },
    "another isolation_level": Fault("can't change 'isolation_level'", _sets_isolation_level),
    "SQLAlchemy's Session over the connection": Fault("rollback", _in_sqlalchemys_session),
    "SQLAlchemy's AUTOCOMMIT over the connection": Fault("can't change", _in_sqlalchemys_autocommit),
    "a stream that it raises in": Fault("and raises", _raises_in_a_stream),
    "a stream that is not read to its end": Fault("a stream or a COPY open", _leaves_a_stream, alone=True),
    "a COPY that is not left": Fault("a stream or a COPY open", _leaves_a_copy, alone=True),
    "a pipeline that is not left": Fault("left a pipeline", _leaves_a_pipeline),
    "a block that is not left": Fault("left a block", _leaves_a_block),
    "a block that it raises in": Fault("and raises", _raises_in_a_block),
    "inturn's own rows changed": Fault(
        "fenced off",
        _runs("DELETE FROM inturn.ticket WHERE key = 'bad'"),
        # Which no applier needs.
        before=f"GRANT ALL ON inturn.ticket TO {APPLIER};"
        f" GRANT EXECUTE ON FUNCTION inturn._hidden_topics TO {APPLIER}",
    ),
    **{
        f"a {type(error).__name__}": Fault(type(error).__name__, _raises(error))
        for error in (asyncio.CancelledError(), KeyboardInterrupt(), GeneratorExit(), BaseException("bare"))
    },
    "SystemExit": Fault("SystemExit", _raises(SystemExit(0))),
    "a coroutine": Fault("did not run", lambda _connection, _command: _async_body()),
    "a generator": Fault("did not run", lambda _connection, _command: _generator_body()),
}
IN_SQL = {
    **{name: fault for name, fault in SHARED.items() if fault.sql is not None},
    # Which may record a turn, so that nothing else would tell.
    "SET ROLE": Fault("left the role set to inturn_applier", sql="SET ROLE inturn_applier;"),
    "SET LOCAL ROLE": Fault("left the role set to inturn_applier", sql="SET LOCAL ROLE inturn_applier;"),
}


def _wait(seconds: float) -> None:
    """Be busy elsewhere for so long, with the transaction open: that is what this fault is."""
    import time

    time.sleep(seconds)


def prepare(database: Database, fault: Fault, *, target: str, in_batches: bool = False) -> None:
    """Create the topics `bad` and `other`, and append to the bad key and the healthy ones.

    in_batches: a SQL target is one for batches; and the bad command has neighbours on its key, see BESIDE.
    """
    database.execute(CONSTRAINTS + _SCHEMA)
    if target == "sql":
        database.execute(_SQL_TARGET % fault.sql)
    name = "python" if target == "python" else "sql:bad.apply" + ("_all" if in_batches else "")
    for topic in ("bad", "other"):
        database.execute(
            f"SELECT inturn.create_topic('{topic}', '{name}', max_attempts => {ATTEMPTS},"
            " backoff_base => '10 ms', backoff_cap => '10 ms')"
        )
    neighbours = in_batches and not fault.alone
    if neighbours:
        database.execute("SELECT inturn.append('bad', 'bad', 'before') FROM generate_series(1, %s)", [BESIDE])
    append_company(database, fault.payload)
    if neighbours:
        database.execute("SELECT inturn.append('bad', 'bad', 'after')")
    if fault.before:
        database.execute(fault.before)
    if fault.session:
        database.execute(f"ALTER DATABASE {database.name} SET {fault.session}")


def append_company(database: Database, payload: str) -> None:
    """Append one command to the bad key, and one to each of the healthy keys around it."""
    database.execute("SELECT inturn.append('bad', 'bad', 'insert', %s::jsonb)", [payload])
    for topic, count in (("bad", HEALTHY), ("other", OTHERS)):
        database.execute(
            "SELECT inturn.append_many(%s, array_agg('k' || n), array_agg('insert'::text))"
            " FROM generate_series(1, %s) n",
            [topic, count],
        )


def handlers(fault: Fault, *, in_batches: bool = False) -> Applier:
    """Return handlers that write each effect, and do what is wrong with the bad command."""
    applier = Applier()

    def apply(connection: psycopg.Connection[Any], command: Command) -> object:
        connection.execute(
            "INSERT INTO bad.witness (topic, key, seq) VALUES (%s, %s, %s)",
            (command.topic, command.key, command.seq),
        )
        is_bad = command.key == "bad" and command.name == "insert"
        return fault.python(connection, command) if is_bad and fault.python else None

    def apply_all(connection: psycopg.Connection[Any], commands: list[Command]) -> Any:
        answers = [apply(connection, command) for command in commands]
        # What it answers may be what is wrong.
        return next((answer for answer in answers if answer is not None), None)

    for topic in ("bad", "other"):
        if in_batches:
            applier.batch_handler(topic)(apply_all)
        else:
            applier.handler(topic)(apply)
    return applier


def is_healed(database: Database) -> bool:
    """Return whether every healthy command took effect."""
    done: int = database.value("SELECT count(*) FROM bad.witness WHERE key <> 'bad'")
    return done == HEALTHY + OTHERS


def innocent_and_charged(database: Database) -> list[tuple[Any, ...]]:
    """Return the healthy keys that have an attempt, or are held."""
    return database.execute(
        "SELECT topic, key, attempts, last_error FROM inturn.key_mark"
        " WHERE key <> 'bad' AND (attempts > 0 OR held_at IS NOT NULL)"
        " UNION ALL SELECT topic, key, 0, error FROM inturn.turn"
        " WHERE key <> 'bad' AND outcome NOT IN ('applied', 'idle', 'lost')"
    )
