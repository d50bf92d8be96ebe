"""P6 where a key waits for a number: nobody waits for who has its ticket, and no wake-up is lost for that."""

from __future__ import annotations

import pytest
from support.database import PATIENCE, Database, Session
from support.gap_scenes import APPEND, FILL, begin, put
from support.oracle import Oracle
from support.race import gate_shut, put_gate, replace_in, unblocked
from support.scenes import drain, ready


@pytest.fixture
def oracle(witness: Database) -> Oracle:
    oracle = Oracle(witness)
    begin(witness, ", gap_timeout => '1 hour'")
    return oracle


def verified(database: Database) -> list[str]:
    return [row[0] for row in database.execute("SELECT violation FROM inturn.verify('given')")]


def _let_the_gap_time_out(database: Database) -> None:
    database.execute("UPDATE inturn.key_cursor SET ready_at = clock_timestamp() WHERE key = 'x'")


def _append_on_snapshot(session: Session, key: str, seq: int) -> None:
    session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    put(session, seq, key=key)
    session.commit()


#: What an operator does to a key that waits, in a transaction that stays open.
ACTIONS = [
    "SELECT inturn.pause('given', 'x')",
    "SELECT inturn.pause('given', 'x', NULL, now() + '1 hour')",
]


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("action", ACTIONS)
def test_p6_an_applier_that_takes_hints_waits_for_no_operator(
    witness: Database, oracle: Oracle, action: str, end: str
) -> None:
    put(witness, 1, 3)
    assert drain_ready(witness) == []
    operator, applier, caller = witness.session(), witness.session(), witness.session()
    operator.execute(action)
    _append_on_snapshot(caller, "x", 2)
    _append_on_snapshot(caller, "y", 1)
    unblocked(witness, applier, "SELECT inturn._take_hints('{given}')", [])
    applier.commit()
    assert "y" in ready(witness), "nobody has that one"
    {"commit": operator.commit, "rollback": operator.rollback}[end]()
    oracle.check()
    assert verified(witness) == []
    witness.execute("SELECT inturn._take_hints('{given}')")
    assert witness.value("SELECT count(*) FROM inturn.wake_hint") == 0
    assert verified(witness) == []
    if end == "commit" and "pause" in action:
        assert drain_ready(witness) == []
        witness.execute("SELECT inturn.resume('given', 'x')")
    assert drain(witness, oracle) == 4


def drain_ready(database: Database) -> list[str]:
    """Apply, and return the keys that are due."""
    database.execute("CALL inturn.apply()")
    rows = database.execute("SELECT key FROM inturn.ticket WHERE ready_at <= clock_timestamp()")
    return [key for (key,) in rows]


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("action", ACTIONS)
def test_p6_a_caller_of_a_key_that_waits_waits_for_no_operator(
    witness: Database, oracle: Oracle, action: str, end: str
) -> None:
    put(witness, 1, 3)
    drain_ready(witness)
    operator, caller = witness.session(), witness.session()
    operator.execute(action)
    unblocked(witness, caller, APPEND, ["x", 4])
    unblocked(witness, caller, APPEND, ["x", 2])
    caller.commit()
    {"commit": operator.commit, "rollback": operator.rollback}[end]()
    oracle.check()
    assert verified(witness) == []
    if end == "commit" and "pause" in action:
        witness.execute("SELECT inturn.resume('given', 'x')")
    assert drain(witness, oracle) == 4


def test_p6_a_caller_waits_for_no_applier_that_claims_the_key_before_it_has_locked_it(
    witness: Database, oracle: Oracle
) -> None:
    """The gap times out just as the missing number is appended; the applier has handlers at work beside."""
    put(witness, 1, 3)
    drain_ready(witness)
    put_gate(witness)
    replace_in(
        witness,
        "_look_at_key",
        (r"PERFORM FROM inturn\.ticket", "PERFORM app.gate_pass(); PERFORM FROM inturn.ticket"),
    )
    caller, applier = witness.session(), witness.session()
    with gate_shut(witness):
        appending = caller.begin(APPEND, ["x", 2])
        caller.wait_blocked()
        _let_the_gap_time_out(witness)
        assert applier.execute("SELECT key FROM inturn.claim('given')") == [("x",)]
    appending.result(PATIENCE)
    caller.commit()
    applier.execute("SELECT inturn.finish('given', '{x}', '{2}', '{2}', '{1}', 'me')")
    applier.commit()
    oracle.check()
    assert verified(witness) == []
    assert drain(witness, oracle) == 3


def test_p6_an_operator_who_waits_for_an_applier_to_fill_a_gap_keeps_no_caller_waiting(
    witness: Database, oracle: Oracle
) -> None:
    put(witness, 1, 3)
    drain_ready(witness)
    _let_the_gap_time_out(witness)
    applier, operator, caller = witness.session(), witness.session(), witness.session()
    applier.execute("SELECT FROM inturn.claim('given')")
    filling = operator.begin(FILL, [2])
    assert operator.wait_blocked() == [applier.pid]
    unblocked(witness, caller, APPEND, ["x", 4])
    caller.commit()
    applier.rollback()
    filling.result()
    operator.commit()
    assert drain(witness, oracle) == 3


@pytest.mark.parametrize("late", [False, True])
def test_p4_the_missing_number_of_a_caller_with_an_old_snapshot_is_no_violation(
    witness: Database, oracle: Oracle, late: bool
) -> None:
    put(witness, 1, 3)
    drain_ready(witness)
    if late:
        witness.execute("UPDATE inturn.topic SET gap_timeout = '1 us' WHERE name = 'given'")
        _let_the_gap_time_out(witness)
        drain_ready(witness)
        assert witness.value("SELECT held_at IS NOT NULL FROM inturn.key_cursor")
    _append_on_snapshot(witness.session(), "x", 2)
    oracle.check()
    assert verified(witness) == []
    assert drain(witness, oracle) == 3


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_p6_a_caller_with_a_snapshot_waits_for_no_turn_that_passes_over_its_number(
    witness: Database, oracle: Oracle, end: str
) -> None:
    """A command has failed for good, all that is pending with it, and other handlers are at work beside."""
    witness.execute("SELECT inturn.set_topic('given', max_attempts => 1, on_exhausted => 'cancel-rest')")
    put(witness, 1, 3)
    applier, caller = witness.session(), witness.session()
    applier.execute("SELECT FROM inturn.claim('given')")
    applier.execute("SELECT inturn.fail('given', 'x', 1, 1, 1, 'by hand', 'me')")
    caller.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    # It may wait for a moment, never for the end of that transaction.
    caller.begin(APPEND, ["x", 2]).result(PATIENCE)
    {"commit": applier.commit, "rollback": applier.rollback}[end]()
    caller.commit()
    oracle.check()
    assert verified(witness) == []
    if end == "rollback":
        witness.execute("SELECT inturn._take_hints('{given}')")
        assert drain(witness, oracle) == 3
    assert verified(witness) == []
