"""P1: per key, sequence order is commit order, from 1, without holes."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.errors import DeadlockDetected, SerializationFailure
from support import scenes
from support.crowd import Crowd, together
from support.database import Database, Session
from support.oracle import Oracle
from support.race import APPEND, append, unblocked
from support.roles import CALLER, OWNER

#: What a key may have behind it when callers meet on it, with its last seq.
STATES = {"new": 0, "pending": 2, "drained": 2}
#: One in each of them: each scene is played on one after the other.
KEYS = {f"a {state} key": state for state in STATES}


@pytest.fixture
def oracle(witness: Database) -> Oracle:
    return Oracle(witness)


@pytest.fixture
def crowd(witness: Database, oracle: Oracle) -> Crowd:
    return Crowd(witness)


def bring(database: Database, key: str, state: str) -> int:
    """Bring a key into a state and return its last seq."""
    for _ in range(STATES[state]):
        append(database, key)
    if state == "drained":
        database.execute("CALL inturn.apply()")
    return STATES[state]


def end(session: Session, how: str) -> None:
    {"commit": session.commit, "rollback": session.rollback, "kill": session.kill}[how]()


@pytest.mark.parametrize("how", ["commit", "rollback", "kill"])
def test_p1_commit_order_overlapping_transactions(witness: Database, oracle: Oracle, how: str) -> None:
    """The second caller of a key waits for the first to end, and gets the number that is then next."""
    second, other = witness.session(), witness.session()
    for key, state in KEYS.items():
        last = bring(witness, key, state)
        first = witness.session()
        assert append(first, key) == last + 1
        waiting = second.begin(APPEND, [key])
        assert second.wait_blocked() == [first.pid]
        assert unblocked(witness, other, APPEND, [f"beside {key}"]) == [(1,)]
        other.commit()
        end(first, how)
        assert waiting.result() == [(last + (2 if how == "commit" else 1),)]
        second.commit()
        scenes.drain(witness, oracle)


def test_p1_commit_order_transactions_that_end_in_the_other_order(witness: Database, oracle: Oracle) -> None:
    """Who began first and appends last comes last."""
    early, late = witness.session(), witness.session()
    early.execute("SELECT pg_current_xact_id()")
    assert append(late, "x") == 1
    waiting = early.begin(APPEND, ["x"])
    assert early.wait_blocked() == [late.pid]
    late.commit()
    assert waiting.result() == [(2,)]
    early.commit()
    scenes.drain(witness, oracle)


def test_p1_no_hole_after_a_backend_killed_in_the_middle_of_an_append(
    witness: Database, oracle: Oracle
) -> None:
    first, third = witness.session(), witness.session()
    for key, state in KEYS.items():
        last = bring(witness, key, state)
        killed = witness.session()
        append(first, key)
        inside = killed.begin(APPEND, [key])
        killed.wait_blocked()
        killed.kill()
        with pytest.raises(psycopg.OperationalError):
            inside.result()
        waiting = third.begin(APPEND, [key])
        assert third.wait_blocked() == [first.pid]
        first.commit()
        assert waiting.result() == [(last + 2,)]
        third.commit()
        scenes.drain(witness, oracle)


def test_p1_several_appends_of_a_key_in_one_transaction(witness: Database, oracle: Oracle) -> None:
    first, second = witness.session(), witness.session()
    for key, state in KEYS.items():
        last = bring(witness, key, state)
        assert [append(first, key) for _ in range(3)] == [last + 1, last + 2, last + 3]
        waiting = second.begin(APPEND, [key])
        second.wait_blocked()
        first.commit()
        assert waiting.result() == [(last + 4,)]
        second.commit()
        scenes.drain(witness, oracle)


def test_p1_a_savepoint_gives_its_numbers_back(witness: Database, oracle: Oracle) -> None:
    caller, other = witness.session(), witness.session()
    for key, state in KEYS.items():
        last = bring(witness, key, state)
        assert append(caller, key) == last + 1
        for _ in range(2):
            caller.execute("SAVEPOINT s")
            assert append(caller, key) == last + 2
            caller.execute("ROLLBACK TO s")
        caller.execute("SAVEPOINT kept")
        assert append(caller, key) == last + 2
        caller.execute("RELEASE kept")
        waiting = other.begin(APPEND, [key])
        assert other.wait_blocked() == [caller.pid]
        caller.commit()
        assert waiting.result() == [(last + 3,)]
        other.commit()
        scenes.drain(witness, oracle)


def test_p1_a_savepoint_that_took_the_key_lets_it_go(witness: Database, oracle: Oracle) -> None:
    first, second = witness.session(user=CALLER), witness.session(user=CALLER)
    for key, state in KEYS.items():
        last = bring(witness, key, state)
        first.execute("SAVEPOINT s")
        append(first, key)
        waiting = second.begin(APPEND, [key])
        assert second.wait_blocked() == [first.pid]
        first.execute("ROLLBACK TO s")
        assert waiting.result() == [(last + 1,)]
        again = first.begin(APPEND, [key])
        assert first.wait_blocked() == [second.pid]
        second.commit()
        assert again.result() == [(last + 2,)]
        first.commit()
        scenes.drain(witness, oracle)


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_p1_a_caller_with_an_old_snapshot_gets_40001_or_the_right_number(
    witness: Database, oracle: Oracle, isolation: str
) -> None:
    caller = witness.session()

    def begin() -> None:
        caller.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        caller.execute("SELECT FROM app.witness")

    for between in ("append", "drain", "append and drain", "nothing"):
        for state in STATES:
            key = f"{state}, then {between}"
            last = bring(witness, key, state)
            begin()
            if "append" in between:
                last = append(witness, key)
            if "drain" in between:
                witness.execute("CALL inturn.apply()")
            try:
                seq = append(caller, key)
                assert between in ("drain", "nothing"), f"appended on a snapshot that lacks a command: {key}"
            except SerializationFailure:
                assert between != "nothing", key
                caller.rollback()
                begin()
                seq = append(caller, key)
            assert seq == last + 1, key
            caller.commit()
            scenes.drain(witness, oracle)


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_p1_a_caller_that_waited_on_one_snapshot_gets_40001_or_the_right_number(
    witness: Database, oracle: Oracle, isolation: str
) -> None:
    first, second = witness.session(), witness.session()
    for how in ("commit", "rollback"):
        for state in STATES:
            key = f"{state}, then {how}"
            last = bring(witness, key, state)
            append(first, key)
            second.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
            waiting = second.begin(APPEND, [key])
            assert second.wait_blocked() == [first.pid]
            end(first, how)
            if how == "rollback":
                assert waiting.result() == [(last + 1,)]
            else:
                with pytest.raises(SerializationFailure):
                    waiting.result()
                second.rollback()
                assert append(second, key) == last + 2
            second.commit()
            scenes.drain(witness, oracle)


ONCE = "SELECT inturn.append('orders', %s, 'insert', '{}', 'request-1')"


@pytest.mark.parametrize("how", ["commit", "rollback", "kill"])
def test_p1_an_idempotency_key_in_flight_twice_is_one_command(
    witness: Database, oracle: Oracle, how: str
) -> None:
    """Also when the reply to the first was lost: the third call is that caller's retry."""
    second = witness.session()
    for key, state in KEYS.items():
        last = bring(witness, key, state)
        first = witness.session()
        assert first.execute(ONCE, [key]) == [(last + 1,)]
        waiting = second.begin(ONCE, [key])
        assert second.wait_blocked() == [first.pid]
        end(first, how)
        assert waiting.result() == [(last + 1,)]
        second.commit()
        assert append(witness, key) == last + 2
        assert witness.value(ONCE, [key]) == last + 1
        scenes.drain(witness, oracle)
        assert witness.value(ONCE, [key]) == last + 1
        scenes.drain(witness, oracle)
        assert witness.value("SELECT count(*) FROM inturn.command_log WHERE key = %s", [key]) == last + 2


def test_p1_an_idempotency_key_on_an_old_snapshot_is_one_command(witness: Database, oracle: Oracle) -> None:
    caller = witness.session()
    caller.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    caller.execute("SELECT FROM app.witness")
    assert witness.value(ONCE, ["x"]) == 1
    with pytest.raises(SerializationFailure):
        caller.execute(ONCE, ["x"])
    caller.rollback()
    assert caller.execute(ONCE, ["x"]) == [(1,)]
    caller.commit()
    scenes.drain(witness, oracle)


def test_p1_append_many_in_opposite_orders_never_deadlocks(witness: Database, oracle: Oracle) -> None:
    scenes.append_many_crosswise(witness, oracle)


def test_p1_append_many_of_a_crowd_never_deadlocks(witness: Database, oracle: Oracle, crowd: Crowd) -> None:
    """Keys in random order, new ones all the time, beside an applier."""
    rounds = """
        DO $$ BEGIN
            FOR n IN 1 .. 150 LOOP
                PERFORM inturn.append_many('orders', keys, keys) FROM (
                    SELECT array_agg(key ORDER BY random()) AS keys
                    FROM (SELECT 'k' || n / 10 * 2 + g AS key FROM generate_series(1, 6) g) k) k;
                COMMIT;
            END LOOP;
        END $$
    """
    with crowd.applying(1):
        crowd.run([rounds] * 6)
    assert oracle.check_drained() == 6 * 150 * 6


def test_p1_two_callers_crosswise_meet_one_deadlock_and_a_retry_works(
    witness: Database, oracle: Oracle
) -> None:
    sessions = [witness.session(), witness.session()]
    for session, key in zip(sessions, "xy", strict=True):
        append(session, key)
    running = [session.begin(APPEND, [key]) for session, key in zip(sessions, "yx", strict=True)]
    # Whichever of them met it; the other has got both keys, so it goes on and the retry has to wait.
    met = [isinstance(second.exception(), DeadlockDetected) for second in running]
    assert sorted(met) == [False, True]
    survivor, victim = (sessions[met.index(happened)] for happened in (False, True))
    own, other = ("x", "y") if victim is sessions[0] else ("y", "x")
    assert running[sessions.index(survivor)].result() == [(1,)]
    victim.rollback()
    again = victim.begin(APPEND, [own])
    assert victim.wait_blocked() == [survivor.pid]
    survivor.commit()
    assert again.result() == [(2,)]
    assert append(victim, other) == 2
    victim.commit()
    scenes.drain(witness, oracle)
    assert witness.execute("SELECT key, max(seq) FROM app.witness GROUP BY key ORDER BY key") == [
        ("x", 2),
        ("y", 2),
    ]


def test_p1_commit_order_of_a_crowd(witness: Database, oracle: Oracle, crowd: Crowd) -> None:
    """Many callers, several keys a transaction, savepoints and rollbacks: receipts prove the order.

    Nobody applies, so every number comes from the log; then everything is drained.
    """
    with oracle.watching():
        crowd.call(6, "'orders', 150, 8")
    assert witness.value("SELECT count(*) FROM app.receipt") > 500
    scenes.drain(witness, oracle)
    with oracle.watching(), crowd.applying(1):
        crowd.call(6, "'orders', 150, 8")
    assert oracle.check_drained() > 1000


def test_p1_first_appends_of_new_keys_by_a_crowd(witness: Database, oracle: Oracle, crowd: Crowd) -> None:
    """All callers go through the same new keys; each key gets one command of each that commits."""
    rounds = """
        DO $$ BEGIN
            FOR n IN 1 .. 400 LOOP
                PERFORM app.append('orders', 'k' || n);
                IF random() < 0.3 THEN ROLLBACK; ELSE COMMIT; END IF;
            END LOOP;
        END $$
    """
    crowd.run([rounds] * 5)
    assert witness.value("SELECT count(*) FROM inturn.command_log") == witness.value(
        "SELECT count(*) FROM app.receipt"
    )
    scenes.drain(witness, oracle)


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_p1_commit_order_of_a_crowd_at_higher_isolation(
    witness: Database, oracle: Oracle, crowd: Crowd, isolation: str
) -> None:
    """Some callers get 40001 and try again; what they commit is in order."""
    level = psycopg.IsolationLevel[isolation.replace(" ", "_")]

    def caller() -> None:
        with witness.connect(user=OWNER) as connection:
            connection.isolation_level = level
            committed = tries = 0
            while committed < 40:
                tries += 1
                assert tries < 4000
                try:
                    with connection.transaction():
                        work(connection, committed)
                except SerializationFailure:
                    continue
                committed += 1

    def work(connection: psycopg.Connection[Any], n: int) -> None:
        for key in sorted({f"k{n % 3}", f"k{n % 5}"}):
            seq = connection.execute(APPEND, [key]).fetchone()
            connection.execute("INSERT INTO app.receipt (key, seq) VALUES (%s, %s)", [key, seq[0]])  # type: ignore[index]

    with oracle.watching(), crowd.applying(1):
        together([caller] * 4)
    assert oracle.check_drained() == witness.value("SELECT count(*) FROM app.receipt")
