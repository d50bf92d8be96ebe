"""P5: a charge reaches its command, and no other, whatever cuts off inturn's own statements."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from support import roles
from support.database import Database, until
from support.race import replace_in

from inturn.applier import Applier, Command, Fleet
from inturn.applier.breaker import Breaker
from inturn.applier.command import ClaimedCommand
from inturn.applier.inside.alone import Alone, AloneTarget, TurnLost, hold, take_alone
from inturn.applier.inside.batch import Batch
from inturn.applier.inside.hand import Hand
from inturn.applier.inside.python_target import PythonTarget
from inturn.applier.inside.sql_target import SqlTarget
from inturn.applier.process.connections import Connections
from inturn.applier.stop import Stop

#: Longer than any timeout here.
_LONGER = "SELECT pg_sleep(0.5)"
_LOCK = "SELECT FROM inturn.ticket FOR UPDATE"
_ENDS = "SELECT pg_terminate_backend(pg_backend_pid())"
_CLAIM_ALONE = "SELECT epoch FROM inturn._claim_alone('t', '-infinity', %s)"
_SECOND_CLAIM = "UPDATE inturn.key_cursor SET lease_until = now(), ready_at = now() - interval '1 minute'"


def _open(database: Database, target: str = "python", *keys: str, settings: str = "") -> None:
    database.execute("""
        CREATE SCHEMA app;
        CREATE FUNCTION app.nothing(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$ BEGIN END $$;
    """)
    name = "python" if target == "python" else "sql:app.nothing"
    database.execute(f"SELECT inturn.create_topic('t', '{name}', backoff_base => '10 ms' {settings})")
    for key in keys or ("k",):
        database.execute("SELECT inturn.append('t', %s, 'do')", [key])


def _handlers() -> Applier:
    applier = Applier()
    applier.handler("t")(lambda _connection, _command: None)
    return applier


def _target(kind: str, timeout: float | None = None) -> PythonTarget | SqlTarget:
    if kind == "sql":
        return SqlTarget("t", "inturn", "host:1:1", Stop(), timeout=timeout)
    return PythonTarget("t", _handlers(), Stop(), "inturn", "host:1:1", timeout=timeout)


@dataclass
class _Between:
    """A target of which something happens between the claim of a key and its turn."""

    target: PythonTarget | SqlTarget
    happens: Callable[[], object]

    topic = "t"
    schema = "inturn"
    applier_id = "host:1:1"

    @property
    def stop(self) -> Stop:
        return self.target.stop

    @property
    def breaker(self) -> Breaker:
        return self.target.breaker

    def turn_alone(self, connection: psycopg.Connection[Any], alone: Alone) -> Batch:
        self.happens()
        return self.target.turn_alone(connection, alone)


def _is_charged(database: Database) -> bool:
    marks = "SELECT count(*) FROM inturn.key_mark WHERE attempts > 0 OR held_at IS NOT NULL"
    turns = "SELECT count(*) FROM inturn.turn WHERE outcome NOT IN ('applied', 'lost', 'idle')"
    return bool(database.value(marks) or database.value(turns))


@pytest.mark.parametrize("setting", ["lock_timeout", "statement_timeout"])
@pytest.mark.parametrize("target", ["python", "sql"])
def test_p5_a_key_that_somebody_has_locked_is_charged_with_no_timeout_of_the_session(
    database: Database, target: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator, for as long as her transaction is open: of the command, nothing was begun."""
    _open(database, target)
    operator = database.session()
    between = _Between(_target(target), lambda: operator.execute(_LOCK))

    def hold_in_time(connection: psycopg.Connection[Any], alone: Alone) -> int:
        # Of this wait alone: on a busy machine a new session's claim may take longer.
        connection.execute(f"SET LOCAL {setting} = '50 ms'")
        return hold(connection, alone)

    monkeypatch.setattr(f"inturn.applier.inside.{target}_target.hold", hold_in_time)
    with Connections(database.applier_dsn, None).connect() as connection:
        batch = take_alone(between, connection, "-infinity")
    operator.rollback()
    assert (batch.keys, batch.failures) == (1, 0)
    assert not _is_charged(database)


@pytest.mark.parametrize("target", ["python", "sql"])
def test_p5_a_key_that_somebody_has_locked_is_not_charged_with_the_topics_timeout(
    database: Database, target: str
) -> None:
    """It is the command's: inturn's wait for the key is no part of that."""
    _open(database, target)
    operator = database.session()
    between = _Between(_target(target, timeout=0.1), lambda: operator.execute(_LOCK))
    with (
        Connections(database.applier_dsn, None).connect() as connection,
        database.beside(lambda: take_alone(between, connection, "-infinity")) as taken,
    ):
        waits = "SELECT cardinality(pg_blocking_pids(%s)) > 0"
        pid = connection.info.backend_pid
        until(lambda: taken.done() or database.value(waits, [pid]), "its wait for the key")
        operator.execute(_LONGER)
        operator.rollback()
        batch = taken.result()
    assert (batch.keys, batch.failures) == (1, 0)
    assert not _is_charged(database)


@pytest.mark.parametrize("target", ["python", "sql"])
def test_p5_a_key_that_another_claim_has_taken_is_no_failure(database: Database, target: str) -> None:
    _open(database, target)

    def claim() -> None:
        database.execute(_SECOND_CLAIM)
        database.execute("DELETE FROM inturn.saved_pass")
        assert database.value(_CLAIM_ALONE, ["host:2:1"])

    with Connections(database.applier_dsn, None).connect() as connection:
        batch = take_alone(_Between(_target(target), claim), connection, "-infinity")
    assert (batch.keys, batch.failures) == (1, 0)
    assert not _is_charged(database)


def _lost(target: AloneTarget, connection: psycopg.Connection[Any]) -> TurnLost:
    with pytest.raises(TurnLost) as raised:
        take_alone(target, connection, "-infinity")
    return raised.value


@pytest.mark.parametrize("target", ["python", "sql"])
def test_p5_a_session_that_ends_while_it_waits_for_a_key_is_no_commands_doing(
    database: Database, target: str
) -> None:
    """By an administrator, or by a transaction_timeout: of the command, nothing was begun."""
    _open(database, target)
    operator = database.session()
    between = _Between(_target(target), lambda: operator.execute(_LOCK))
    connections = Connections(database.applier_dsn, None)
    with connections.connect() as connection:
        pid = connection.info.backend_pid
        with database.beside(lambda: _lost(between, connection)) as taken:
            waits = "SELECT cardinality(pg_blocking_pids(%s)) > 0"
            until(lambda: taken.done() or database.value(waits, [pid]), "its wait for the key")
            database.administer("SELECT pg_terminate_backend(%s)", [pid])
            lost = taken.result(60)
    operator.rollback()
    with connections.connect() as connection:
        assert not lost.record(connection)
    assert not _is_charged(database)
    assert database.execute("SELECT FROM inturn.key_mark WHERE lost > 0") == []


@pytest.mark.parametrize("target", ["python", "sql"])
def test_p5_a_command_that_ends_its_session_is_charged_at_once_where_no_other_was_begun(
    database: Database, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a timeout of the session, for which the end of its own stands here: every server has that."""
    monkeypatch.setattr("inturn.applier.inside.alone._OF_THE_COMMAND", {"57P01"})
    _open(database, target)
    database.execute("""
        CREATE OR REPLACE FUNCTION app.nothing(command inturn.command) RETURNS void LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); END $$;
        GRANT USAGE ON SCHEMA app TO PUBLIC""")
    by = _target(target)
    if isinstance(by, PythonTarget):
        by.applier.handler("t", "do")(lambda connection, _: connection.execute(_ENDS))
    connections = Connections(database.applier_dsn, None)
    with connections.connect() as connection:
        lost = _lost(by, connection)
    with connections.connect() as connection:
        assert lost.record(connection)
    assert database.execute("SELECT attempts, lost FROM inturn.key_mark") == [(1, 1)]


_REFUSED = """
    CREATE FUNCTION app.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'refused'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON inturn.turn FOR EACH ROW WHEN (NEW.outcome = 'applied')
        EXECUTE FUNCTION app.refuse();
"""


@pytest.mark.parametrize("by", ["python", "sql", "call"])
def test_p5_a_turn_that_cannot_be_ended_is_charged_at_once_where_one_command_was_begun(
    database: Database, by: str
) -> None:
    """Of several nobody can tell which one it was: the key is a suspect first."""
    _open(database, "python" if by == "python" else "sql", "one", "several", "several")
    database.execute(_REFUSED)
    database.execute("GRANT USAGE ON SCHEMA app TO PUBLIC")
    first = "SELECT key, (array_agg(outcome ORDER BY epoch))[1] FROM inturn.turn GROUP BY 1 ORDER BY 1"
    if by == "call":
        database.execute("UPDATE inturn.topic SET backoff_base = '1 hour', backoff_cap = '1 hour'")
        with database.connect(user=roles.APPLIER) as session:
            session.execute("SET inturn.careful_keys = 2")
            session.execute("CALL inturn.apply()")
    else:
        with Connections(database.applier_dsn, None).connect() as connection:
            for _ in range(2):
                assert _target(by).apply_alone(connection, "-infinity").failures == 1
    assert database.execute(first) == [("one", "retrying"), ("several", "lost")]


def test_p5_under_call_a_key_that_somebody_has_locked_is_not_charged(database: Database) -> None:
    _open(database, "sql")
    # Somebody has it locked for longer than a lock_timeout, once.
    database.execute("CREATE SEQUENCE app.once; GRANT USAGE ON SEQUENCE app.once TO PUBLIC")
    database.execute("GRANT USAGE ON SCHEMA app TO PUBLIC")
    replace_in(
        database,
        "_hold_lease",
        (
            r"BEGIN\n",
            "BEGIN IF nextval('app.once') = 1 THEN RAISE lock_not_available; END IF;\n",
        ),
    )
    with database.connect(user=roles.APPLIER) as session:
        session.execute("SET inturn.careful_keys = 20")
        session.execute("CALL inturn.apply()")
    assert database.value("SELECT nextval('app.once')") > 1
    assert not _is_charged(database)


def test_p5_who_takes_too_long_is_charged_by_whoever_finds_its_key(database: Database) -> None:
    """Once its session has ended, another claim may be quicker than who has ended it."""
    _open(database)
    epoch = database.value(_CLAIM_ALONE, ["host:1:1"])
    database.execute("SELECT inturn._blame_alone('t', 'k', %s, 'too long')", [epoch - 1])  # another turn
    assert database.value("SELECT last_error FROM inturn.key_mark") is None
    database.execute("SELECT inturn._blame_alone('t', 'k', %s, 'too long')", [epoch])
    database.execute(_SECOND_CLAIM)
    database.execute("DELETE FROM inturn.saved_pass")
    assert database.value(_CLAIM_ALONE, ["host:2:1"]) is None
    marks = "SELECT attempts, lost, last_error, claimed_by FROM inturn.key_mark"
    assert database.execute(marks) == [(1, 1, "too long", None)]
    assert database.execute("SELECT outcome, error, applier FROM inturn.turn") == [
        ("retrying", "too long", "host:1:1")
    ]


def test_p5_what_was_noted_of_a_turn_that_ends_after_all_is_forgotten(database: Database) -> None:
    _open(database)
    epoch = database.value(_CLAIM_ALONE, ["host:1:1"])
    database.execute("SELECT inturn._blame_alone('t', 'k', %s, 'too long')", [epoch])
    assert database.value("SELECT inturn._end_alone('t', 'k', %s, 1)", [epoch]) == "applied"
    assert database.execute("SELECT FROM inturn.key_mark") == []
    assert database.execute("SELECT FROM inturn.verify('t')") == []


def test_p5_a_charge_that_cannot_be_written_ends_no_worker(database: Database) -> None:
    """Somebody has the key locked for longer than the session's lock_timeout: the others go on."""
    _open(database, "python", "bad", *(f"k{n}" for n in range(5)))
    database.execute(f"ALTER DATABASE {database.name} SET lock_timeout = '50 ms'")
    operator = database.session()
    operator.execute("SET lock_timeout = 0")
    applier = Applier()

    @applier.handler("t")
    def apply(connection: psycopg.Connection[Any], command: Command) -> None:
        if command.key == "bad":
            connection.execute("ROLLBACK")
            operator.execute("SELECT FROM inturn.ticket WHERE key = 'bad' FOR UPDATE")
            raise ValueError("and its charge waits")

    fleet = Fleet(database.applier_dsn, applier, drain=True)
    fleet.start()
    assert fleet.wait(60)
    outcome = fleet.end(0)
    operator.rollback()
    assert outcome.error is None
    assert outcome.commands == 5
    assert database.execute("SELECT key FROM inturn.key_mark WHERE attempts > 0 AND key <> 'bad'") == []
    assert database.value("SELECT claimed_by IS NOT NULL FROM inturn.key_mark WHERE key = 'bad'")


def test_p5_a_cancel_reaches_no_other_statement_than_that_of_the_late_command() -> None:
    """It is on its way for a while: the worker does not go on meanwhile, neither to a charge nor to a key."""
    hand, order = Hand(), ClaimedCommand("t", "k", 1, "do", "{}", None, 1, 1)  # type: ignore[arg-type]
    under_way, left = threading.Event(), threading.Event()
    went_on_meanwhile = []

    def cancel() -> None:
        under_way.set()
        went_on_meanwhile.append(left.wait(0.3))

    def work() -> None:
        with hand.holding(order, 0.0, is_alone=True):
            under_way.wait(60)
        left.set()

    worker = threading.Thread(target=work)
    worker.start()
    while not under_way.is_set():
        hand.interrupt(cancel)
        time.sleep(0)
    worker.join()
    assert went_on_meanwhile == [False]
    hand.interrupt(cancel)  # nothing is in hand
    assert went_on_meanwhile == [False]
