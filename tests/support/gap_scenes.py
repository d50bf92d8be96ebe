"""Scenes of numbers that callers give, each decided by a guard in the SQL: see scenes."""

from __future__ import annotations

from support.database import Database, Session, until
from support.lease_scenes import Lease, claim
from support.oracle import Oracle
from support.race import blocked, gate_shut, put_gate, replace_in, unblocked
from support.scenes import OLD_SNAPSHOT, applied_all, apply, drain, ready, refused, snapshot

PASSED, REFUSED = "IT052", "IT041"
APPEND = "SELECT inturn.append('given', %s, 'insert', seq => %s)"
FILL = "SELECT inturn.fill_gap('given', 'x', %s, 'lost')"


def begin(database: Database, more: str = "") -> None:
    """Create the topic."""
    database.execute(
        "SELECT inturn.create_topic('given', 'sql:app.apply_order', backoff_base => '10 ms',"
        f" numbering => 'given'{more})"
    )


def put(session: Database | Session, *seqs: int, key: str = "x") -> None:
    for seq in seqs:
        session.execute(APPEND, [key, seq])


def finish_beside_the_open_append_of_the_missing(database: Database, oracle: Oracle) -> None:
    """P4: the key stays ready while the missing one may be about to commit."""
    begin(database)
    put(database, 1, 3)
    caller, applier = database.session(), database.session()
    put(caller, 2)
    applier.execute("SELECT FROM inturn.claim('given')")
    applier.execute("INSERT INTO app.witness (key, seq, name) VALUES ('x', 1, 'insert')")
    unblocked(database, applier, "SELECT inturn.finish('given', '{x}', '{1}', '{1}', '{1}', 'me')", [])
    applier.commit()
    caller.commit()
    assert ready(database) == ["x"]
    assert drain(database, oracle) == 3


def the_missing_one_comes(database: Database, oracle: Oracle) -> None:
    """P4: it wakes the key, whether it is the first number or a later one."""
    begin(database)
    put(database, 2)
    oracle.check()
    assert ready(database) == []
    put(database, 1)
    assert ready(database) == ["x"]
    drain(database, oracle)
    put(database, 4)
    assert ready(database) == []
    put(database, 3)
    assert ready(database) == ["x"]
    assert drain(database, oracle) == 4


def the_next_one_comes(database: Database, oracle: Oracle) -> None:
    """P4: it wakes an idle key."""
    begin(database)
    for seq in (1, 2):
        put(database, seq)
        assert ready(database) == ["x"]
        assert drain(database, oracle) == seq


def append_on_an_old_snapshot(database: Database, oracle: Oracle) -> None:
    """P4: the caller cannot see whether the key went idle or waits; no retry is asked of it."""
    begin(database)
    put(database, 1)
    for seqs in ((2,), (4,), (3,)):
        early = snapshot(database)
        until(lambda: applied_all(database), "no key ready")
        put(early, *seqs)
        early.commit()
        oracle.check()
    assert drain(database, oracle) == 4


def late_append_on_an_old_snapshot(database: Database, oracle: Oracle) -> None:
    """P3: the snapshot shows neither that the number was passed over nor that it was appended: 40001."""
    begin(database)
    put(database, 1, 3)
    apply(database)
    for change in (FILL % 2, "SELECT inturn.append('given', 'x', 'insert', seq => 4)"):
        seq = 2 if "fill" in change else 4
        early = snapshot(database)
        database.execute(change)
        apply(database)
        refused(early, OLD_SNAPSHOT, (APPEND, ["x", seq]))
    assert drain(database, oracle) == 3
    refused(snapshot(database), PASSED, (APPEND, ["x", 2]))
    assert database.value("SELECT count(*) FROM inturn.skip") == 1


def the_missing_one_beside_a_turn_that_looks_for_it(database: Database, oracle: Oracle) -> None:
    """P6: an applier has the key in hand with nothing to apply, beside keys whose handlers take long."""
    begin(database, ", gap_timeout => '50 ms'")
    put(database, 2)
    until(lambda: database.value("SELECT ready_at < clock_timestamp() FROM inturn.key_cursor"), "too late")
    applier, caller = database.session(), database.session()
    applier.execute("SELECT FROM inturn.claim('given')")
    unblocked(database, caller, APPEND, ["x", 1])
    caller.commit()
    applier.execute("SELECT inturn.finish('given', '{x}', '{1}', '{1}', '{0}', 'me')")
    applier.commit()
    assert ready(database) == ["x"]
    assert drain(database, oracle) == 2


def late_append_after_fill_gap(database: Database, oracle: Oracle) -> None:
    """P3: a number that was passed over does not come back."""
    begin(database)
    put(database, 1, 3)
    apply(database)
    database.execute(FILL, [2])
    refused(database.session(), PASSED, (APPEND, ["x", 2]))
    assert drain(database, oracle) == 2


def claims_before_a_gap(database: Database, oracle: Oracle) -> None:
    """P3: a lease comes with the commands before the gap."""
    begin(database)
    put(database, 1, 3)
    assert claim(database, topic="given") == [Lease("x", 1, (1,), "given")]


def turns_before_a_gap(database: Database, oracle: Oracle) -> None:
    """P3: nothing behind a gap is applied, and the key is known to wait."""
    begin(database)
    put(database, 1, 2, 4)
    until(lambda: applied_all(database), "no key ready", patience=1)
    oracle.check()
    assert database.execute("SELECT seq FROM app.witness ORDER BY id") == [(1,), (2,)]
    put(database, 3)
    assert drain(database, oracle) == 4


def append_beside_cancel_rest(database: Database, oracle: Oracle) -> None:
    """P2: an operator moves the key just as a caller fills the gap that was there."""
    begin(database)
    put(database, 2, 3)
    caller, operator = database.session(), database.session()
    put(caller, 2)  # the same again: it has the lock of its key, and not that of the cursor
    operator.execute("SELECT inturn.cancel_rest('given', 'x', 'closed')")
    unblocked(database, caller, APPEND, ["x", 1])
    operator.commit()
    caller.commit()
    oracle.check()
    assert drain(database, oracle) == 3


def gap_times_out_under_a_pause(database: Database, oracle: Oracle) -> None:
    """A paused key is not held; it is when the pause is over."""
    begin(database, ", gap_timeout => '50 ms'")
    put(database, 2)
    database.execute("SELECT inturn.pause('given', 'x')")
    late = "SELECT waiting_at + interval '50 ms' < clock_timestamp() FROM inturn.key_cursor"
    until(lambda: database.value(late), "too late")
    put(database, 3)
    oracle.check()
    database.execute("SELECT inturn.resume('given', 'x')")
    until(
        lambda: applied_all(database) and database.value("SELECT held_at FROM inturn.key_cursor"),
        "held",
        patience=5,
    )
    oracle.check()
    put(database, 1)
    assert drain(database, oracle) == 3


def fill_gap_beside_the_append_of_the_missing(database: Database, oracle: Oracle) -> None:
    """The append of the missing number has the lock of its key and has not inserted yet."""
    put_gate(database)
    begin(database)
    put(database, 1, 3)
    apply(database)
    gate = (r"IF inturn\._is_there", "IF app.gate_pass() AND inturn._is_there")
    replace_in(database, "_append_given", gate)
    caller, operator = database.session(), database.session()
    with gate_shut(database):
        appending = caller.begin(APPEND, ["x", 2])
        caller.wait_blocked()
        filling = operator.begin(FILL, [2])
        assert blocked(database, operator, filling), "did not wait for the caller"
    appending.result()
    caller.commit()
    assert getattr(filling.exception(), "sqlstate", None) == REFUSED
    operator.rollback()
    assert drain(database, oracle) == 3


def fill_gap_beside_an_applier(database: Database, oracle: Oracle) -> None:
    """P6: an operator who waits for an applier keeps no caller waiting."""
    begin(database)
    put(database, 1, 3)
    applier, operator, caller = database.session(), database.session(), database.session()
    applier.execute("SELECT FROM inturn.claim('given')")
    filling = operator.begin(FILL, [2])
    assert operator.wait_blocked() == [applier.pid]
    unblocked(database, caller, APPEND, ["x", 4])
    caller.rollback()
    applier.rollback()
    assert getattr(filling.exception(), "sqlstate", None) == REFUSED
    operator.rollback()
