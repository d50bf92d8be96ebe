"""Pruning beside callers, appliers, operators and other prunes, in two sessions at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg
import pytest
from support.crowd import Crowd, together
from support.database import Database, Session, until
from support.oracle import Oracle
from support.race import Turn, append, blocked, gate_shut, kill, put_gate, replace_in, unblocked
from support.roles import OPERATOR, OWNER

BATCH = "SELECT * FROM inturn.prune_batch('orders', older_than => '0')"
_NO_FORGETTING = (r"forgotten := inturn\._forget_keys\(.*?\);", "forgotten := 0;")


@pytest.fixture
def orders(witness: Database) -> Database:
    """Topic orders that forgets at once, with key a applied up to 2."""
    witness.execute("""
        UPDATE inturn.topic SET retain = '0', forget_idle_after = '0';
        SELECT inturn.append('orders', 'a', 'insert') FROM generate_series(1, 2);
    """)
    witness.execute("CALL inturn.apply()")
    return witness


def _forget(database: Database) -> int:
    return int(database.execute(BATCH)[0][3])


def _check(database: Database) -> None:
    assert database.execute("SELECT * FROM inturn.verify('orders')") == []


def _isolated(database: Database, level: str = "REPEATABLE READ") -> Session:
    """Return a session with a snapshot of now."""
    session = database.session()
    session.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
    session.execute("SELECT FROM inturn.schema_version")
    return session


def test_a_caller_that_waits_for_a_key_that_is_forgotten_goes_on_above_it(orders: Database) -> None:
    prune, caller = orders.session(), orders.session()
    assert prune.execute(BATCH)[0][3] == 1
    running = caller.begin("SELECT inturn.append('orders', 'a', 'insert')")
    assert caller.wait_blocked() == [prune.pid]
    prune.commit()
    assert running.result() == [(3,)]
    caller.commit()
    orders.execute("CALL inturn.apply()")
    assert orders.execute("SELECT seq FROM app.witness ORDER BY id") == [(1,), (2,), (3,)]
    _check(orders)


def test_an_idle_applier_does_not_wait_for_an_operator_who_has_not_committed_a_prune(
    orders: Database,
) -> None:
    """It would apply nothing meanwhile. Another topic it prunes."""
    orders.execute("SELECT inturn.create_topic('bills', retain => '1 h')")
    idle = "SELECT inturn._prune_idle()"
    for begun in (False, True):
        operator, applier = orders.session(), orders.session()
        append(orders, "a")
        orders.execute("CALL inturn.apply()")
        if begun:  # once its row is there
            orders.execute("DELETE FROM inturn.prune_pass WHERE topic = 'bills'")
        operator.execute(BATCH)
        assert unblocked(orders, applier, idle, []) == [(True,)]
        applier.commit()
        assert ("bills",) in orders.execute("SELECT topic FROM inturn.prune_pass")
        assert unblocked(orders, applier, idle, []) == [(False,)]
        applier.commit()
        operator.commit()
        orders.execute("UPDATE inturn.prune_pass SET began_at = began_at - interval '1 h'")
        assert orders.value(idle)
    _check(orders)


def test_a_caller_that_waits_for_a_forgetting_that_is_undone_finds_its_key(orders: Database) -> None:
    prune, caller = orders.session(), orders.session()
    assert prune.execute(BATCH)[0][3] == 1
    running = caller.begin("SELECT inturn.append('orders', 'a', 'insert')")
    assert caller.wait_blocked() == [prune.pid]
    kill(orders, prune)
    assert running.result() == [(3,)]
    caller.commit()
    assert orders.value("SELECT count(*) FROM inturn.forgotten") == 0
    _check(orders)


@pytest.mark.parametrize("end", [Session.commit, Session.rollback])
def test_callers_that_wait_for_a_cut_lock_the_version_of_the_row_that_it_leaves(
    orders: Database, end: Callable[[Session], None]
) -> None:
    """Beside a held snapshot each prune leaves one more version: they are looked up from the newest on."""
    orders.execute("UPDATE inturn.topic SET forget_idle_after = NULL")
    report = _isolated(orders)
    for _ in range(5):
        orders.execute("SELECT inturn.append('orders', 'a', 'insert')")
        orders.execute("CALL inturn.apply()")
        assert orders.execute(BATCH)[0][1] > 0
    orders.execute("SELECT inturn.append('orders', 'a', 'insert')")
    orders.execute("CALL inturn.apply()")
    prune, first, second = orders.session(), orders.session(), orders.session()
    assert prune.execute(BATCH)[0][1] == 1
    waiting = first.begin("SELECT inturn.append('orders', 'a', 'insert')")
    assert first.wait_blocked() == [prune.pid]
    end(prune)
    assert waiting.result() == [(9,)]
    behind = second.begin("SELECT inturn.append('orders', 'a', 'insert')")
    assert second.wait_blocked() == [first.pid]
    first.commit()
    assert behind.result() == [(10,)]
    second.commit()
    report.rollback()
    orders.execute("CALL inturn.apply()")
    assert [seq for (seq,) in orders.execute("SELECT seq FROM app.witness ORDER BY id")] == list(range(1, 11))
    _check(orders)


def test_a_key_that_a_caller_has_locked_is_left_and_nobody_waits(orders: Database) -> None:
    caller, prune = orders.session(), orders.session()
    append(caller, "a")
    assert unblocked(orders, prune, BATCH, [])[0] == (None, 0, 0, 0)
    prune.commit()
    caller.commit()
    # It is not idle now, so it is not forgotten.
    assert orders.execute(BATCH)[0] == (None, 2, 0, 0)
    orders.execute("CALL inturn.apply()")
    _check(orders)


def test_an_applier_waits_for_no_prune(orders: Database) -> None:
    append(orders, "a")
    prune, applier = orders.session(), orders.session()
    assert prune.execute(BATCH)[0][1] == 2
    unblocked(orders, applier, "SELECT inturn.apply_batch('orders', '-infinity', 10, 'me')", [])
    applier.commit()
    prune.commit()
    assert orders.value("SELECT max(seq) FROM app.witness") == 3
    until(lambda: orders.execute("CALL inturn.apply()") and _idle(orders), "idle")
    _check(orders)


def _idle(database: Database) -> bool:
    return bool(database.value("SELECT count(*) = 0 FROM inturn.ticket"))


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_caller_whose_snapshot_is_older_than_a_prune_runs_again(orders: Database, level: str) -> None:
    replace_in(orders, "prune_batch", _NO_FORGETTING)
    early = _isolated(orders, level)
    append(orders, "a")
    append(orders, "a")
    orders.execute("CALL inturn.apply()")
    orders.execute(BATCH)
    with pytest.raises(psycopg.errors.SerializationFailure):
        append(early, "a")
    early.rollback()
    assert append(early, "a") == 5


def test_without_the_new_version_of_its_row_it_would_take_a_number_that_was_pruned(orders: Database) -> None:
    replace_in(orders, "prune_batch", _NO_FORGETTING)
    replace_in(orders, "_cut_history", (r"UPDATE inturn\.key_sequence s SET.*?LIMIT 1\);", ""))
    early = _isolated(orders)
    append(orders, "a")
    append(orders, "a")
    orders.execute("CALL inturn.apply()")
    orders.execute(BATCH)
    assert append(early, "a") == 3


@pytest.mark.parametrize("marked", [False, True])
def test_a_caller_whose_snapshot_knows_neither_a_key_nor_that_it_was_forgotten_runs_again(
    orders: Database, *, marked: bool
) -> None:
    if marked:
        assert _forget(orders) == 1
    early = _isolated(orders)
    append(orders, "b")
    orders.execute("CALL inturn.apply()")
    assert _forget(orders) == 2 - marked
    with pytest.raises(psycopg.errors.SerializationFailure):
        append(early, "b")
    early.rollback()
    early.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    seq = append(early, "b")
    assert seq == orders.value("SELECT seq + 1 FROM inturn.forgotten")
    # It keeps no prune waiting.
    prune = orders.session()
    append(orders, "c")
    orders.execute("CALL inturn.apply()")
    assert unblocked(orders, prune, BATCH, [])[0][3] == 1
    prune.commit()
    early.commit()
    orders.execute("SELECT inturn._take_hints(ARRAY['orders'])")
    orders.execute("CALL inturn.apply()")
    _check(orders)


def test_without_that_guard_it_would_begin_again_at_1(orders: Database) -> None:
    replace_in(orders, "_begin_keys", (r"PERFORM inturn\._refuse_forgotten\(topic\);", ""))
    early = _isolated(orders)
    append(orders, "b")
    orders.execute("CALL inturn.apply()")
    assert _forget(orders) == 2
    assert append(early, "b") == 1


def test_a_hint_of_a_key_that_was_forgotten_is_taken_away(orders: Database) -> None:
    orders.execute("INSERT INTO inturn.wake_hint VALUES ('orders', 'a', clock_timestamp())")
    assert _forget(orders) == 1
    assert orders.value("SELECT inturn._take_hints(ARRAY['orders'])") == 1
    assert orders.value("SELECT count(*) FROM inturn.wake_hint") == 0


def test_a_key_with_a_command_that_nobody_has_been_woken_for_is_not_forgotten(orders: Database) -> None:
    early = _isolated(orders)
    append(early, "a")
    early.commit()
    assert not orders.execute("SELECT FROM inturn.ticket")
    assert _forget(orders) == 0
    orders.execute("SELECT inturn._take_hints(ARRAY['orders'])")
    orders.execute("CALL inturn.apply()")
    assert orders.value("SELECT max(seq) FROM app.witness") == 3


def test_without_that_look_the_command_would_be_left_in_a_key_that_is_forgotten(orders: Database) -> None:
    look = r"NOT EXISTS \(SELECT FROM inturn\.command_log l[^)]*\)"
    replace_in(orders, "_forget_keys", (look, "true"))
    early = _isolated(orders)
    append(early, "a")
    early.commit()
    assert _forget(orders) == 1
    found = orders.execute("SELECT violation FROM inturn.verify('orders')")
    assert ("sequence-row-missing",) in found


#: Before an operator's last look at a key that he has locked.
_GATE = (
    r"(?=SELECT \* INTO cursor FROM inturn\._find_cursor\([^)]*\) c;\s+EXIT WHEN beside)",
    "PERFORM app.gate_pass(); ",
)


def test_an_operator_who_waits_for_a_key_that_is_forgotten_finds_none(orders: Database) -> None:
    put_gate(orders)
    replace_in(orders, "_lock_cursor", _GATE)
    prune, operator = orders.session(), orders.session()
    assert prune.execute(BATCH)[0][3] == 1
    with gate_shut(orders):
        running = operator.begin("SELECT inturn.pause('orders', 'a')")
        assert operator.wait_blocked() == [prune.pid]
        prune.commit()
        assert not blocked(orders, operator, running), "it takes the key for one that it has locked"
    error = running.exception()
    assert isinstance(error, psycopg.Error)
    assert error.sqlstate == "IT040"


def test_without_that_look_he_would_act_on_a_key_that_he_has_not_locked(orders: Database) -> None:
    """A caller makes the key anew just then, and an applier claims it."""
    put_gate(orders)
    replace_in(orders, "_lock_cursor", _GATE, (r"IF NOT FOUND OR EXISTS", "IF EXISTS"))
    prune, operator, applier = orders.session(), orders.session(), orders.session()
    assert prune.execute(BATCH)[0][3] == 1
    with gate_shut(orders):
        running = operator.begin("SELECT inturn.pause('orders', 'a')")
        assert operator.wait_blocked() == [prune.pid]
        prune.commit()
        assert blocked(orders, operator, running)
        append(orders, "a")
        (turn,) = Turn.claim(orders, applier)
    until(lambda: operator.wait_blocked() == [applier.pid], "the operator behind the applier")
    turn.effects(applier, 3)
    unblocked(orders, applier, *turn.finish(3))
    applier.commit()
    running.result()
    operator.commit()
    assert ("ticket-behind",) in orders.execute("SELECT violation FROM inturn.verify('orders')")


_LOOK_BEFORE_INSERT = (r"WHERE \(SELECT true FROM inturn\.key_sequence s.*?LIMIT 1\) IS NULL", "")


@pytest.mark.parametrize("guarded", [True, False])
def test_a_pass_does_not_wait_for_the_forgetting_of_a_key_and_numbers_what_arrived_on_it(
    orders: Database, guarded: bool
) -> None:
    orders.execute("""
        SELECT inturn.create_topic('fast', 'sql:app.apply_order', numbering => 'arrival');
        UPDATE inturn.topic SET retain = '0', forget_idle_after = '0';
        SELECT inturn.append('fast', 'f', 'insert');
    """)
    orders.execute("CALL inturn.apply()")
    if not guarded:
        replace_in(orders, "_lock_arrived_keys", _LOOK_BEFORE_INSERT)
    prune, applier = orders.session(), orders.session()
    orders.execute("SELECT inturn.append('fast', 'f', 'insert')")
    assert prune.execute("SELECT * FROM inturn.prune_batch('fast', older_than => '0')")[0][3] == 1
    running = applier.begin("SELECT inturn._number_arrivals(ARRAY['fast'])")
    assert blocked(orders, applier, running) != guarded
    prune.commit()
    running.result()
    applier.commit()
    until(
        lambda: (
            orders.execute("CALL inturn.apply()")
            and orders.value("SELECT count(*) = 2 FROM app.witness WHERE key = 'f'")
        ),
        "what arrived is applied",
    )
    assert orders.execute("SELECT seq FROM app.witness WHERE key = 'f' ORDER BY id") == [(1,), (2,)]
    assert orders.execute("SELECT * FROM inturn.verify('fast')") == []


def test_what_was_left_behind_on_a_key_that_was_forgotten_is_numbered(orders: Database) -> None:
    """As when the key went between a pass's look at it and its lock."""
    orders.execute("""
        SELECT inturn.create_topic('fast', 'sql:app.apply_order', numbering => 'arrival');
        SELECT inturn.append('fast', 'f', 'insert');
        UPDATE inturn.intake SET left_because = 'locked';
        INSERT INTO inturn.forgotten VALUES ('fast', 7, 9);
    """)
    orders.execute("CALL inturn.apply()")
    assert orders.execute("SELECT seq FROM app.witness WHERE key = 'f'") == [(8,)]
    assert orders.execute("SELECT * FROM inturn.verify('fast')") == []


def test_two_prunes_at_once_and_one_that_is_killed_do_no_harm(orders: Database) -> None:
    orders.execute("SELECT inturn.append('orders', 'k' || n % 300, 'insert') FROM generate_series(1, 900) n")
    orders.execute("CALL inturn.apply()")
    first, second = orders.session(), orders.session()
    first.execute(BATCH)
    running = second.begin(BATCH)
    blocked(orders, second, running)
    kill(orders, first)
    running.result()
    second.commit()
    _check(orders)
    together([lambda: _prune_all(orders)] * 3)
    _prune_all(orders)
    assert orders.value("SELECT count(*) FROM inturn.key_sequence") == 0
    assert orders.value("SELECT seq FROM inturn.forgotten") == 3
    _check(orders)


class _Door:
    """Has the lock that a prune of topic orders takes for each batch, and lets them in one at a time."""

    _LOCK = "SELECT pg_advisory_xact_lock(inturn._prune_lock('orders'))"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._holder = database.session(user=OWNER)
        self._holder.execute(self._LOCK)

    def let_one_in(self) -> None:
        """Return when the batch that waits has committed, and the next one would wait."""
        after = self._database.session(user=OWNER)
        running = after.begin(self._LOCK)
        after.wait_blocked()
        self._holder.commit()
        running.result()
        self._holder = after

    def open(self) -> None:
        self._holder.commit()


def test_a_prune_stops_in_its_time_goes_on_where_it_was_and_commits_each_batch(orders: Database) -> None:
    """A batch looks at 200 keys, from the last to the first."""
    orders.execute("UPDATE inturn.topic SET forget_idle_after = NULL")
    orders.execute("SELECT inturn.append('orders', 'k' || n, 'insert') FROM generate_series(1001, 1409) n")
    orders.execute("CALL inturn.apply()")
    count, last = "SELECT count(*) FROM inturn.command_log", "SELECT max(key) FROM inturn.command_log"
    assert orders.execute("CALL inturn.prune('orders', max_seconds => 0)") == [(0, 0, 0, False)]
    door, pruning = _Door(orders), orders.session(user=OPERATOR, autocommit=True)
    # Its time may be over before its first batch; then it says so, and has done nothing.
    running = pruning.begin("CALL inturn.prune('orders', max_seconds => 0.05)")
    while not blocked(orders, pruning, running):
        assert running.result() == [(0, 0, 0, False)]
        running = pruning.begin("CALL inturn.prune('orders', max_seconds => 0.05)")
    over_at = orders.value("SELECT clock_timestamp() + interval '0.05 s'")
    until(lambda: orders.value("SELECT clock_timestamp() > %s", [over_at]), "its time is over")
    door.open()
    assert running.result() == [(200, 0, 0, False)]
    assert (orders.value(count), orders.value(last)) == (211, "k1209")
    append(orders, "k1409")
    orders.execute("CALL inturn.apply()")
    # The next one begins with what that one did not come to; what it commits is gone, whatever comes then.
    door = _Door(orders)
    running = pruning.begin("CALL inturn.prune('orders')")
    assert blocked(orders, pruning, running)
    door.let_one_in()
    assert (orders.value(count), orders.value(last)) == (12, "k1409")
    door.open()
    assert running.result() == [(212, 1, 0, True)]
    assert orders.value(count) == 0
    _check(orders)


def _prune_all(database: Database) -> None:
    with database.connect(user=OPERATOR) as connection:
        connection.execute("CALL inturn.prune('orders')")


def test_a_crowd_beside_prunes_that_forget_keeps_every_promise(witness: Database) -> None:
    """Callers take each key's numbers, whatever was forgotten meanwhile, and effects follow them."""
    _ = Oracle(witness)
    crowd = Crowd(witness)
    witness.execute("UPDATE inturn.topic SET retain = '0', forget_idle_after = '0'")
    over = threading.Event()

    def prune() -> None:
        with witness.connect(user=OPERATOR) as connection:
            while not over.is_set():
                connection.execute("CALL inturn.prune('orders')")

    prunes = [threading.Thread(target=prune) for _ in range(2)]
    for thread in prunes:
        thread.start()
    try:
        with crowd.applying(3):
            crowd.call(6, "'orders', 60, 8")
            crowd.call(4, "'orders', 60, 8, rollbacks => 0.5")
    finally:
        over.set()
        for thread in prunes:
            thread.join()
    _check(witness)
    # Every number that a caller was given took effect once, in order, and none was given twice.
    assert witness.execute("SELECT key, seq FROM app.receipt GROUP BY key, seq HAVING count(*) > 1") == []
    assert witness.execute("SELECT key, seq FROM app.receipt EXCEPT SELECT key, seq FROM app.witness") == []
    assert witness.execute("SELECT key, seq FROM app.witness EXCEPT SELECT key, seq FROM app.receipt") == []
    assert (
        witness.execute(
            "SELECT FROM (SELECT seq, lag(seq) OVER (PARTITION BY key ORDER BY id) AS before"
            "             FROM app.witness) w"
            " WHERE seq <= before"
        )
        == []
    )
    assert witness.value("SELECT count(*) FROM inturn.forgotten") == 1
