"""Scenes between operators, appliers and callers, each decided by a guard in the SQL: see scenes."""

from __future__ import annotations

from support.database import Database, until
from support.oracle import Oracle
from support.race import APPEND, Turn, append, gate_shut, put_gate, replace_in, unblocked
from support.scenes import FENCED, apply, drain, ready, refused, snapshot

REFUSED = "IT041"
SKIP = "SELECT inturn.skip('orders', %s, %s, 'not wanted')"


def hold(database: Database, key: str, *after: str) -> None:
    """Make a key held at its first command, with others behind it."""
    database.execute("UPDATE inturn.topic SET max_attempts = 1")
    for name in ("fail", *after):
        database.execute("SELECT inturn.append('orders', %s, %s)", [key, name])
    apply(database)
    assert database.value("SELECT held_at IS NOT NULL FROM inturn.key_cursor WHERE key = %s", [key])


def skip_before_more(database: Database, oracle: Oracle) -> None:
    """What is pending behind a skipped command makes the key ready."""
    hold(database, "x", "insert")
    database.execute(SKIP, ["x", 1])
    assert ready(database) == ["x"]
    assert drain(database, oracle) == 2


def skip_of_the_last_command(database: Database, oracle: Oracle) -> None:
    """The key goes idle, where the next append wakes it."""
    hold(database, "x")
    database.execute(SKIP, ["x", 1])
    assert ready(database) == []
    oracle.check()
    append(database, "x")
    assert ready(database) == ["x"]
    assert drain(database, oracle) == 2


def skip_beside_an_open_append(database: Database, oracle: Oracle) -> None:
    """P4: a skip waits for no caller, and lets no key go idle while one may be about to commit."""
    hold(database, "x")
    caller, operator = database.session(), database.session()
    assert append(caller, "x") == 2
    unblocked(database, operator, SKIP, ["x", 1])
    operator.commit()
    caller.commit()
    assert ready(database) == ["x"]
    assert drain(database, oracle) == 2


def append_between_snapshot_and_lock_of_skip(database: Database, oracle: Oracle) -> None:
    """P4: a command that is committed while _requeue locks, after that statement took its snapshot."""
    put_gate(database)
    replace_in(database, "_requeue", (r"(?<=s\.key <= was\.key)", " AND app.gate_pass()"))
    hold(database, "x")
    operator = database.session()
    with gate_shut(database):
        skipping = operator.begin(SKIP, ["x", 1])
        operator.wait_blocked()
        assert append(database, "x") == 2
    skipping.result()
    operator.commit()
    assert ready(database) == ["x"]
    assert drain(database, oracle) == 2


def skip_beside_an_applier(database: Database, oracle: Oracle) -> None:
    """P2: an operator waits for the turn in hand, and is told what it has done meanwhile."""
    append(database, "x")
    append(database, "x")
    applier, operator = database.session(), database.session()
    (turn,) = Turn.claim(database, applier)
    turn.effects(applier, 1)
    skipping = operator.begin(SKIP, ["x", 1])
    assert operator.wait_blocked() == [applier.pid]
    applier.execute(*turn.finish(1))
    applier.commit()
    error = skipping.exception()
    assert getattr(error, "sqlstate", "DID NOT RAISE") == REFUSED
    operator.rollback()
    assert drain(database, oracle) == 2


def skip_out_of_turn(database: Database, oracle: Oracle) -> None:
    """P3: only the next command can be passed over."""
    for _ in range(3):
        append(database, "x")
    session = database.session()
    for seq in (0, 2, 3, 4, None):
        refused(session, REFUSED, (SKIP, ["x", seq]))
    oracle.check()
    assert drain(database, oracle) == 3
    refused(session, REFUSED, (SKIP, ["x", 4]))


def late_finish_after_a_skip(database: Database, oracle: Oracle) -> None:
    """The operator's move of the cursor has an epoch of its own: what begins after it is another turn."""
    for _ in range(3):
        append(database, "x")
    late = database.session()
    (turn,) = Turn.claim(database, late)
    late.commit()
    database.execute(SKIP, ["x", 1])
    for statement in (turn.finish(1), turn.finish(2), turn.fail(1)):
        refused(late, FENCED, statement)
    assert Turn.claim(database, late) == [Turn("x", 1, turn.epoch + 1)], "the epoch of another turn"
    late.rollback()
    assert drain(database, oracle) == 3


def append_to_a_paused_idle_key(database: Database, oracle: Oracle) -> None:
    """Nothing is lost, nothing is applied before its time."""
    for key in ("x", "y"):
        append(database, key)
    drain(database, oracle)
    database.execute(
        "SELECT inturn.pause('orders', 'x'), inturn.pause('orders', 'y', NULL, now() + '1 hour')"
    )
    for key in ("x", "y"):
        append(database, key)
    oracle.check()
    apply(database)
    assert database.value("SELECT count(*) FROM app.witness") == 2, "applied while paused"
    assert ready(database) == ["y"], "ready for when its pause ends"
    database.execute("SELECT inturn.resume('orders', 'x'), inturn.resume('orders', 'y')")
    assert drain(database, oracle) == 4


def append_on_an_old_snapshot_to_a_paused_idle_key(database: Database, oracle: Oracle) -> None:
    """The look at its hint leaves the pause as it is, and so does its end find the command."""
    append(database, "x")
    early = snapshot(database)
    drain(database, oracle)
    database.execute("SELECT inturn.pause('orders', 'x')")
    append(early, "x")
    early.commit()
    apply(database)
    oracle.check()
    assert ready(database) == []
    database.execute("SELECT inturn.resume('orders', 'x')")
    assert ready(database) == ["x"]
    assert drain(database, oracle) == 2


def pause_of_a_ready_key(database: Database, oracle: Oracle) -> None:
    """It stands still until it is resumed, and others go on."""
    for key in ("x", "y"):
        append(database, key)
    database.execute("SELECT inturn.pause('orders', 'x')")
    session = database.session()
    oracle.check()
    assert Turn.claim(database, session, max_keys=10) == [Turn("y", 0, 1)]
    session.rollback()
    append(database, "x")
    database.execute("SELECT inturn.resume('orders', 'x')")
    assert drain(database, oracle) == 3


def pause_for_good_then_until(database: Database, oracle: Oracle) -> None:
    """A key that a turn left ready with nothing to apply: no append would wake it before it has gone idle."""
    append(database, "x")
    caller = database.session()
    append(caller, "x")
    apply(database)
    caller.rollback()
    assert ready(database) == ["x"]
    database.execute("SELECT inturn.pause('orders', 'x')")
    database.execute("SELECT inturn.pause('orders', 'x', NULL, now() + '1 hour')")
    append(database, "x")
    assert ready(database) == ["x"], "lost when its pause ends"
    database.execute("SELECT inturn.resume('orders', 'x')")
    assert drain(database, oracle) == 2


def claim_of_a_paused_topic(database: Database, oracle: Oracle) -> None:
    """No key of a paused topic is claimed, appends go on."""
    append(database, "x")
    database.execute("SELECT inturn.pause_topic('orders')")
    session = database.session()
    assert Turn.claim(database, session) == []
    session.rollback()
    caller = database.session()
    assert unblocked(database, caller, APPEND, ["x"]) == [(2,)]
    caller.commit()
    apply(database)
    assert database.value("SELECT count(*) FROM app.witness") == 0
    database.execute("SELECT inturn.resume_topic('orders')")
    assert drain(database, oracle) == 2


def pause_of_an_idle_key_beside_its_open_append(database: Database, oracle: Oracle) -> None:
    """P2: the operator waits for the caller that wakes the key, and pauses the key as that left it."""
    append(database, "x")
    drain(database, oracle)
    caller, operator = database.session(), database.session()
    append(caller, "x")
    pausing = operator.begin("SELECT inturn.pause('orders', 'x')")
    assert operator.wait_blocked() == [caller.pid]
    caller.commit()
    pausing.result()
    operator.commit()
    oracle.check()
    assert ready(database) == []
    database.execute("SELECT inturn.resume('orders', 'x')")
    assert drain(database, oracle) == 2


def append_beside_the_open_pause_of_an_idle_key(database: Database, oracle: Oracle) -> None:
    """P4: the caller waits for the operator, who may roll back."""
    append(database, "x")
    drain(database, oracle)
    for end in ("rollback", "commit"):
        caller, operator = database.session(), database.session()
        operator.execute("SELECT inturn.pause('orders', 'x')")
        appending = caller.begin(APPEND, ["x"])
        assert caller.wait_blocked() == [operator.pid]
        {"commit": operator.commit, "rollback": operator.rollback}[end]()
        appending.result()
        caller.commit()
        oracle.check()
        assert ready(database) == ([] if end == "commit" else ["x"])
        if end == "rollback":
            drain(database, oracle)
    database.execute("SELECT inturn.resume('orders', 'x')")
    assert drain(database, oracle) == 3


def claim_beside_the_pause_of_a_key_that_was_woken(database: Database, oracle: Oracle) -> None:
    """P2: an operator found the key idle and waited for its caller: what that made ready is locked too."""
    put_gate(database)
    append(database, "x")
    drain(database, oracle)
    gate = (
        r"_lock_cursor\.key\) c;(?=\s+EXIT WHEN beside)",
        "_lock_cursor.key) c WHERE app.gate_pass();",
    )
    replace_in(database, "_lock_cursor", gate)
    caller, operator, applier = database.session(), database.session(), database.session()
    append(caller, "x")
    with gate_shut(database):
        pausing = operator.begin("SELECT inturn.pause('orders', 'x')")
        assert operator.wait_blocked() == [caller.pid]
        caller.commit()
        until(lambda: operator.wait_blocked() != [caller.pid], "the operator at the gate")
        turns = Turn.claim(database, applier)
    for turn in turns:  # the lock was none
        until(lambda: operator.wait_blocked() == [applier.pid], "the operator behind the applier")
        turn.effects(applier, 2)
        unblocked(database, applier, *turn.finish(2))
    applier.commit()
    pausing.result()
    operator.commit()
    oracle.check()
    database.execute("SELECT inturn.resume('orders', 'x')")
    assert drain(database, oracle) == 2
