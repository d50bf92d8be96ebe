"""Scenes: the races that a guard in the SQL decides.

The tests of the promises play them on the schema as it is, where they have to end well;
tests/promises/all/guards plays them with the guard taken out, where they must not.
"""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import errors

from support.database import Database, Session, until
from support.oracle import Oracle
from support.race import APPEND, Turn, append, blocked, gate_shut, put_gate, replace_in, unblocked

FENCED, NOT_READ_COMMITTED, OLD_SNAPSHOT = "IT030", "IT031", "40001"
BATCH = "SELECT inturn.apply_batch('orders', '-infinity', 32, 'batch')"


def drain(database: Database, oracle: Oracle) -> int:
    """Apply all that is ready; every key is idle then, with all its commands applied. Return their number."""
    oracle.check()
    until(lambda: applied_all(database), "no key ready")
    return oracle.check_drained()


def apply(database: Database) -> None:
    database.execute("CALL inturn.apply()")


def applied_all(database: Database) -> bool:
    """Apply what is ready; return whether nothing is any more."""
    apply(database)
    return not ready(database)


def ready(database: Database) -> list[str]:
    rows = database.execute("SELECT key FROM inturn.key_cursor WHERE ready_at IS NOT NULL ORDER BY key")
    return [key for (key,) in rows]


def refused(session: Session, sqlstate: str, statement: tuple[str, list[Any]]) -> None:
    """Run a statement that has to end with this SQLSTATE, and roll back."""
    with pytest.raises(errors.Error) as caught:
        session.execute(*statement)
    assert caught.value.sqlstate == sqlstate
    session.rollback()


def second_caller_waits(database: Database, oracle: Oracle, statement: str = APPEND) -> None:
    """Two callers of one key: the second waits for the first to commit and gets the number after."""
    append(database, "x")
    first, second = database.session(), database.session()
    assert append(first, "x") == 2
    waiting = second.begin(statement, ["x"])
    assert second.wait_blocked() == [first.pid]
    first.commit()
    assert waiting.result() == [(3,)]
    second.commit()
    assert drain(database, oracle) == 3


def second_caller_with_more_to_look_up_waits(database: Database, oracle: Oracle) -> None:
    """A command that is not plain, as one whose payload is no object, waits for the first in the same way."""
    second_caller_waits(database, oracle, "SELECT inturn.append('orders', %s, 'insert', '[]')")


MANY = "SELECT inturn.append_many('orders', %s::text[], %s::text[])"


def append_many_crosswise(database: Database, oracle: Oracle) -> None:
    """Held up at the first key, neither of two calls in opposite orders may hold the other key."""
    for key in ("x", "y"):
        append(database, key)
    holder, one, two = database.session(), database.session(), database.session()
    append(holder, "x")
    xy = one.begin(MANY, [["x", "y", "x"], ["a"] * 3])
    one.wait_blocked()
    yx = two.begin(MANY, [["y", "x", "y"], ["a"] * 3])
    two.wait_blocked()
    holder.commit()
    for session, call in sorted([(one, xy), (two, yx)], key=lambda call: blocked(database, *call)):
        first, _, third = call.result()[0][0]
        assert third == first + 1, "commands of one key changed places"
        session.commit()
    assert drain(database, oracle) == 9


def claim_beside_a_locked_head(database: Database, oracle: Oracle) -> None:
    """A second claim gets another key, a third nothing: never the first one's, and none waits."""
    for key in ("x", "x", "x", "y", "y"):
        append(database, key)
    first, second, third = database.session(), database.session(), database.session()
    assert Turn.claim(database, first) == [Turn("x", 0, 1)]
    assert Turn.claim(database, second, max_keys=10) == [Turn("y", 0, 1)]
    assert Turn.claim(database, third, max_keys=10) == []
    assert unblocked(database, third, "SELECT * FROM inturn.claim_commands('orders')", []) == []
    for session in (first, second, third):
        session.rollback()
    assert drain(database, oracle) == 5


def claim_before_its_time(database: Database, oracle: Oracle) -> None:
    """A key whose command failed is not claimed before its next attempt is due."""
    database.execute("UPDATE inturn.topic SET backoff_base = '1 hour', backoff_cap = '2 hours'")
    append(database, "x")
    session = database.session()
    (turn,) = Turn.claim(database, session)
    session.execute(*turn.fail(1))
    session.commit()
    assert Turn.claim(database, session) == []
    assert ready(database) == ["x"]
    oracle.check()


def late_finish_after_a_failed_turn(database: Database, oracle: Oracle) -> None:
    """Only the epoch tells that the key has had another turn: nothing was applied in it."""
    append(database, "x")
    late, other = database.session(), database.session()
    (turn,) = Turn.claim(database, late)
    late.commit()
    (again,) = Turn.claim(database, other)
    other.execute(*again.fail(1))
    other.commit()
    refused(late, FENCED, turn.finish(1))
    refused(late, FENCED, turn.fail(1))
    assert oracle.violations() == []
    until(lambda: applied_all(database), "no key ready")
    assert database.execute("SELECT outcome, to_seq FROM inturn.turn ORDER BY epoch") == [
        ("retrying", 0),
        ("applied", 1),
    ]
    oracle.check_drained()


def finish_without_the_claim(database: Database, oracle: Oracle) -> None:
    """The transaction of the claim is over, as after a handler's COMMIT: its turn cannot be ended."""
    append(database, "x")
    session = database.session()
    (turn,) = Turn.claim(database, session)
    for statement in (turn.finish(1), turn.fail(1)):
        session.commit()
        refused(session, FENCED, statement)
    assert drain(database, oracle) == 1


def finish_of_another_stand(database: Database, oracle: Oracle) -> None:
    """The epoch is right and applied_seq is not where the turn says that it began."""
    append(database, "x")
    append(database, "x")
    session = database.session()
    (turn,) = Turn.claim(database, session)
    refused(session, FENCED, Turn("x", 1, turn.epoch).finish(2))
    assert drain(database, oracle) == 2


def turn_on_one_snapshot(database: Database, oracle: Oracle, isolation: str = "REPEATABLE READ") -> None:
    """A turn outside READ COMMITTED is refused: its finish would not see what was appended meanwhile."""
    append(database, "x")
    session = database.session()
    for failing in (False, True):
        session.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        (turn,) = Turn.claim(database, session)
        refused(session, NOT_READ_COMMITTED, turn.fail(1) if failing else turn.finish(1))
    assert drain(database, oracle) == 1


def apply_by_default_at(database: Database, oracle: Oracle, isolation: str = "repeatable read") -> None:
    """CALL inturn.apply works at READ COMMITTED, whatever the session's default."""
    for key in ("x", "y", "x"):
        append(database, key)
    session = database.session(
        autocommit=True, options=f"-c default_transaction_isolation={isolation.replace(' ', chr(92) + ' ')}"
    )
    assert session.execute("CALL inturn.apply()")[0][0] == 3
    assert drain(database, oracle) == 3


def finish_beside_an_open_append(database: Database, oracle: Oracle, end: str = "commit") -> None:
    """P4 from the caller's side: a caller holds the key, so finish neither waits nor lets it go idle."""
    append(database, "x")
    caller, applier = database.session(), database.session()
    assert append(caller, "x") == 2
    (turn,) = Turn.claim(database, applier)
    turn.effects(applier, 1)
    unblocked(database, applier, *turn.finish(1))
    applier.commit()
    assert ready(database) == ["x"]
    apply(database)
    assert ready(database) == ["x"], "went to sleep although a caller may be about to commit"
    {"commit": caller.commit, "rollback": caller.rollback, "kill": caller.kill}[end]()
    assert drain(database, oracle) == (2 if end == "commit" else 1)
    append(database, "x")
    drain(database, oracle)


def append_beside_a_finish(database: Database, oracle: Oracle, end: str = "commit") -> None:
    """P4 from the applier's side: a caller that comes while finish holds the key waits, and wakes the key."""
    append(database, "x")
    caller, applier = database.session(), database.session()
    (turn,) = Turn.claim(database, applier)
    turn.effects(applier, 1)
    unblocked(database, applier, *turn.finish(1))
    waiting = caller.begin(APPEND, ["x"])
    assert caller.wait_blocked() == [applier.pid]
    {"commit": applier.commit, "rollback": applier.rollback, "kill": applier.kill}[end]()
    assert waiting.result() == [(2,)]
    caller.commit()
    assert ready(database) == ["x"]
    assert drain(database, oracle) == 2


def append_between_claim_and_finish(database: Database, oracle: Oracle) -> None:
    """P4: a command that is committed after the applier has read the log is found by finish."""
    append(database, "x")
    applier = database.session()
    (turn,) = Turn.claim(database, applier)
    turn.effects(applier, 1)
    assert append(database, "x") == 2
    unblocked(database, applier, *turn.finish(1))
    applier.commit()
    assert ready(database) == ["x"]
    assert drain(database, oracle) == 2


def append_between_snapshot_and_lock_of_finish(database: Database, oracle: Oracle) -> None:
    """P4: a command that is committed while finish's locking statement runs, after it took its snapshot.

    A gate in that statement holds the moment open.
    """
    put_gate(database)
    replace_in(database, "_finish", (r"(?<=s\.key <= t\.key)", " AND app.gate_pass()"))
    append(database, "x")
    applier = database.session()
    (turn,) = Turn.claim(database, applier)
    turn.effects(applier, 1)
    with gate_shut(database):
        finishing = applier.begin(*turn.finish(1))
        applier.wait_blocked()
        assert append(database, "x") == 2
    finishing.result()
    applier.commit()
    assert ready(database) == ["x"]
    assert drain(database, oracle) == 2


def append_to_a_drained_key(database: Database, oracle: Oracle) -> None:
    """P4: the first command after the drained ones wakes the key, whether it is alone or not."""
    for commands in (1, 2, 1):
        caller = database.session()
        for _ in range(commands):
            append(caller, "x")
        caller.commit()
        assert ready(database) == ["x"]
        drain(database, oracle)


def append_after_an_empty_turn(database: Database, oracle: Oracle) -> None:
    """P4: a key whose last turn left it awake goes idle by one that finds nothing, and can be woken."""
    finish_beside_an_open_append(database, oracle, "rollback")


def append_to_a_held_key(database: Database, oracle: Oracle) -> None:
    """Callers of a held key go on, and leave it held."""
    database.execute("UPDATE inturn.topic SET max_attempts = 1")
    database.execute("SELECT inturn.append('orders', 'x', 'fail')")
    apply(database)
    for seq in (2, 3):
        assert append(database, "x") == seq
        oracle.check()
        apply(database)
    assert ready(database) == []
    assert database.value("SELECT held_at IS NOT NULL FROM inturn.key_cursor")
    assert append(database, "y") == 1
    apply(database)
    assert database.execute("SELECT key, seq FROM app.witness") == [("y", 1)]
    oracle.check()


def callers_of_a_key_at_work(database: Database, oracle: Oracle) -> None:
    """A caller of a key that has more commands waits for no applier that is at work on it."""
    append(database, "x")
    applier, caller = database.session(), database.session()
    (turn,) = Turn.claim(database, applier)
    assert unblocked(database, caller, APPEND, ["x"]) == [(2,)]
    caller.commit()
    turn.effects(applier, 1)
    unblocked(database, applier, *turn.finish(1))
    applier.commit()
    assert drain(database, oracle) == 2


def callers_of_a_key_whose_turn_has_failed(database: Database, oracle: Oracle) -> None:
    """P6: a failure is recorded, and the handlers of the keys beside it are still at work."""
    append(database, "x")
    drain(database, oracle)
    append(database, "x")
    applier, caller = database.session(), database.session()
    (turn,) = Turn.claim(database, applier)
    applier.execute(*turn.fail(2))
    assert unblocked(database, caller, APPEND, ["x"]) == [(3,)]
    caller.commit()
    applier.commit()
    assert drain(database, oracle) == 3


def snapshot(database: Database, isolation: str = "REPEATABLE READ") -> Session:
    """Return a session whose transaction sees the database as it is now."""
    session = database.session()
    session.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
    session.execute("SELECT FROM app.witness")
    return session


def append_on_a_snapshot_older_than_the_last_turn(
    database: Database, oracle: Oracle, isolation: str = "REPEATABLE READ"
) -> None:
    """P4: the caller cannot see that the key went idle, once or twice; no retry is asked of it."""
    append(database, "x")
    for seq in (2, 3):
        early = snapshot(database, isolation)
        drain(database, oracle)
        assert append(early, "x") == seq
        early.commit()
        assert drain(database, oracle) == seq


def append_on_an_old_snapshot_before_appliers_sleep(database: Database, oracle: Oracle) -> None:
    """P4: an applier that has nothing to do looks for it too."""
    append(database, "x")
    early = snapshot(database)
    drain(database, oracle)
    append(early, "x")
    early.commit()
    assert ready(database) == []
    database.execute("SELECT inturn.announce_sleep('{orders}')")
    assert ready(database) == ["x"]
    assert drain(database, oracle) == 2


def append_on_an_old_snapshot_beside_an_open_append(database: Database, oracle: Oracle) -> None:
    """P4: appliers wait for no caller to look at the key, and the hint stays until they can."""
    append(database, "x")
    early = snapshot(database)
    drain(database, oracle)
    append(early, "x")
    early.commit()
    caller = database.session()
    assert append(caller, "x") == 3
    unblocked(database, database.session(autocommit=True), "CALL inturn.apply()", [])
    caller.commit()
    oracle.check()
    assert drain(database, oracle) == 3


def append_beside_a_look_at_its_key(database: Database, oracle: Oracle) -> None:
    """P2: an applier looks at an idle key whose hint is old, as the next command is appended and applied."""
    put_gate(database)
    append(database, "x")
    early = snapshot(database)
    append(early, "x")
    early.commit()
    database.execute(BATCH)
    assert ready(database) == []
    replace_in(database, "_look_at_key", _GATE_IN_LOOK)
    looker, caller = database.session(), database.session()
    with gate_shut(database):
        looking = looker.begin("SELECT inturn._take_hints('{orders}')")
        looker.wait_blocked()
        appending = caller.begin(APPEND, ["x"])
        if not blocked(database, caller, appending):
            caller.commit()
            database.execute(BATCH)
    looking.result()
    looker.commit()
    assert appending.result() == [(3,)]
    caller.commit()
    assert drain(database, oracle) == 3


def turn_ends_beside_a_look_at_its_key(database: Database, oracle: Oracle) -> None:
    """P2: an applier looks at a key for a hint as another applier's turn on it ends."""
    put_gate(database)
    append(database, "x")
    early = snapshot(database)
    append(early, "x")
    early.commit()
    looker, applier = database.session(), database.session()
    (turn,) = Turn.claim(database, applier)
    turn.effects(applier, 1)
    replace_in(database, "_look_at_key", _GATE_IN_LOOK)
    with gate_shut(database):
        looking = looker.begin("SELECT inturn._take_hints('{orders}')")
        looker.wait_blocked()
        unblocked(database, applier, *turn.finish(1))
        applier.commit()
    looking.result()
    looker.commit()
    assert drain(database, oracle) == 2


#: The gate is passed between the look at where the key stands and the look at its ticket.
_GATE_IN_LOOK = (
    r"_look_at_key\.key\) c;(?=\s+-- Of a later)",
    "_look_at_key.key) c WHERE app.gate_pass();",
)


def order_within_a_turn(database: Database, oracle: Oracle) -> None:
    """The commands of a turn are applied in order."""
    for _ in range(5):
        append(database, "x")
    assert drain(database, oracle) == 5
