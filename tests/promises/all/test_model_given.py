"""Numbering given under Hypothesis: callers in any order, appliers of both kinds, operators, on one key."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)
from support.combinations import sizes
from support.database import Database, Session, until
from support.lease_scenes import Lease, claim
from support.oracle import Oracle
from support.race import blocked, kill, replace_in, unblocked
from support.roles import OPERATOR
from support.walks import walk, walk_once

#: Long walks: on one server version.
pytestmark = pytest.mark.slow

APPEND = "SELECT inturn.append(%s, %s, 'insert', seq => %s)"
_examples = itertools.count(1)


class Machine(RuleBasedStateMachine):
    """Two callers whose transactions stay open at will, one key, numbers up to a dozen."""

    database: Database
    oracle: Oracle
    operator: psycopg.Connection[Any]

    def __init__(self) -> None:
        super().__init__()
        self.topic = f"given{next(_examples)}"
        self.key = f"{self.topic} x"
        self.database.execute(
            "SELECT inturn.create_topic(%s, 'sql:app.apply_order', numbering => 'given', max_ahead => 8,"
            " backoff_base => '1 microsecond', batch_commands => 3)",
            [self.topic],
        )
        self.callers = [self.database.session(), self.database.session()]
        self.applier, self.client = self.database.session(), self.database.session(autocommit=True)
        self.turn_open = False
        #: Who holds the key, and what it has appended.
        self.holder: Session | None = None
        self.appended: set[int] = set()
        self.committed: set[int] = set()
        #: Where the key stood in the snapshot of a transaction that has one.
        self.seen: tuple[int, set[int]] | None = None
        self.lease: Lease | None = None

    @rule(
        who=st.integers(0, 1),
        seq=st.integers(1, 12),
        after=st.sampled_from([None, None, "nothing", "turn", "fill_gap", "cancel_rest"]),
    )
    def append(self, who: int, seq: int, after: str | None = None) -> None:
        """A number is taken once, and refused just when it was passed over or is too far ahead.

        after: the caller's transaction has one snapshot, and this is what happens between it and the append.
        """
        caller = self.callers[who]
        if self.holder not in {None, caller}:
            return
        if self.holder is None and after is not None:
            self._take_a_snapshot(caller, after)
        caller.execute("SAVEPOINT s")
        running = caller.begin(APPEND, [self.topic, self.key, seq])
        if blocked(self.database, caller, running):
            assert self.turn_open, "waits for nobody"
            self.end_the_turn("commit")
        error = running.exception()
        # The turn that it waited for may have applied more.
        now = self._stand()
        applied, passed = self.seen or now
        there = seq in self.committed | self.appended
        if error is None:
            assert there or (applied < seq <= applied + 8 and seq not in now[1])
            self.holder = caller
            self.appended.add(seq)
            caller.execute("RELEASE s")
            return
        caller.execute("ROLLBACK TO s")
        if self.holder is None:
            caller.rollback()
            self.seen = None
        assert not there
        wanted = "IT053" if seq > applied + 8 else "IT052" if seq in passed else "40001"
        assert wanted != "40001" or seq in now[1], "asked for a retry that was not needed"
        assert getattr(error, "sqlstate", None) == wanted, error

    def _take_a_snapshot(self, caller: Session, then: str) -> None:
        caller.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        caller.execute("SELECT FROM inturn.schema_version")
        self.seen = self._stand()
        if then == "turn" and not self.turn_open:
            self.take_a_turn()
            self.end_the_turn("commit")
        elif then in {"fill_gap", "cancel_rest"}:
            self.operate(then)

    @rule(how=st.sampled_from(["commit", "commit", "commit", "rollback", "kill"]))
    def end(self, how: str) -> None:
        if self.holder is None:
            return
        if how == "kill":
            kill(self.database, self.holder)
            self.callers[self.callers.index(self.holder)] = self.database.session()
        else:
            {"commit": self.holder.commit, "rollback": self.holder.rollback}[how]()
        if how == "commit":
            self.committed |= self.appended
        self.holder, self.appended, self.seen = None, set(), None

    @rule(who=st.integers(0, 1), seq=st.integers(1, 12))
    def append_and_commit(self, who: int, seq: int) -> None:
        self.append(who, seq)
        self.end("commit")

    @precondition(lambda self: not self.turn_open)
    @rule()
    def take_a_turn(self) -> None:
        self.database.execute("SELECT inturn._take_hints(ARRAY[%s])", [self.topic])
        unblocked(
            self.database,
            self.applier,
            "SELECT inturn.apply_batch(%s, '-infinity', 1, 'model')",
            [self.topic],
        )
        self.turn_open = True

    @precondition(lambda self: self.turn_open)
    @rule(how=st.sampled_from(["commit", "commit", "rollback"]))
    def end_the_turn(self, how: str) -> None:
        if how == "commit":
            self.applier.commit()
        else:
            self.applier.rollback()
        self.turn_open = False

    @rule()
    def claim_by_lease(self) -> None:
        for lease in claim(self.client, 1, "client", self.topic):
            self.lease = lease
            assert list(lease.seqs) == list(range(lease.seqs[0], lease.seqs[0] + len(lease.seqs)))

    @precondition(lambda self: self.lease is not None and not self.turn_open)
    @rule(step=st.sampled_from(["work", "work", "work", "release", "expire"]))
    def take_a_step(self, step: str) -> None:
        lease = self.lease
        assert lease is not None
        applied, _ = self._stand()
        try:
            if step == "expire":
                self.database.execute(
                    "UPDATE inturn.key_cursor SET lease_until = now(),"
                    " ready_at = CASE WHEN ready_at IS NOT NULL THEN greatest(now(), paused_until) END"
                    " WHERE key = %s AND lease_until > now()",
                    [self.key],
                )
            elif step == "work" and applied + 1 in lease.seqs:
                if lease.work(self.client, applied + 1) is None:
                    self.lease = None
            else:
                self.client.execute(*lease.step("release"))
                self.lease = None
        except psycopg.Error as error:
            if error.sqlstate != "IT030":
                raise
            self.lease = None

    @rule(
        action=st.sampled_from(
            ["fill_gap", "fill_gap", "cancel_rest", "pause", "pause_until", "resume", "retry"]
        )
    )
    def operate(self, action: str) -> None:
        applied, _ = self._stand()
        call = {
            "fill_gap": f"inturn.fill_gap(%s, %s, {applied + 1}, 'model')",
            "cancel_rest": "inturn.cancel_rest(%s, %s, 'model')",
            "pause_until": "inturn.pause(%s, %s, NULL, clock_timestamp() + '5 ms')",
        }.get(action, f"inturn.{action}(%s, %s)")
        # Of a number that was appended on an old snapshot a hint tells, before an applier has looked.
        waiting = self.database.execute(
            "SELECT FROM inturn.key_cursor c WHERE key = %s AND waiting_at IS NOT NULL AND ready_at IS NULL"
            " AND NOT EXISTS (SELECT FROM inturn.command_log l"
            " WHERE l.topic = c.topic AND l.key = c.key AND l.seq = c.applied_seq + 1)",
            [self.key],
        )
        try:
            self.operator.execute(f"SELECT {call}", [self.topic, self.key])
        except psycopg.Error as error:
            if error.sqlstate not in {"IT040", "IT041", "IT042", "55P03"}:
                raise
            if action == "fill_gap" and waiting and not (self.turn_open or self.holder):
                raise AssertionError("a gap was not filled") from error

    @rule(gap_timeout=st.sampled_from(["1 microsecond", "0"]))
    def change_the_patience(self, gap_timeout: str) -> None:
        try:
            self.operator.execute(
                "SELECT inturn.set_topic(%s, gap_timeout => %s::interval)", [self.topic, gap_timeout]
            )
        except psycopg.Error as error:
            if error.sqlstate != "IT041":
                raise

    @invariant()
    def promises_hold(self) -> None:
        self.oracle.check(f"{self.topic} %")

    @invariant()
    def log_is_the_model(self) -> None:
        rows = self.database.execute("SELECT seq FROM inturn.command_log WHERE topic = %s", [self.topic])
        assert {seq for (seq,) in rows} == self.committed

    def teardown(self) -> None:
        """Whatever is missing comes at last: then nothing is left."""
        self.end("rollback")
        self.applier.rollback()
        self.turn_open, self.lease = False, None
        try:
            _, passed = self._stand()
            for seq in range(1, max([12, *passed]) + 1):
                if seq in passed | self.committed:
                    continue
                self._apply_all(seq - 1)
                self.append_and_commit(0, seq)
            self._apply_all(12)
            self.promises_hold()
            self.log_is_the_model()
        finally:
            for session in (*self.callers, self.applier, self.client):
                session.close()

    def _apply_all(self, last: int) -> None:
        """Apply up to a number: what is paused is resumed, and no lease is waited for."""
        self.operate("resume")

        def there() -> bool:
            self.database.execute(
                "UPDATE inturn.key_cursor SET lease_until = now(), ready_at = now()"
                " WHERE key = %s AND lease_until > now()",
                [self.key],
            )
            self.database.execute("SELECT inturn._take_hints(ARRAY[%s])", [self.topic])
            self.database.execute("SELECT inturn.apply_batch(%s, '-infinity', 1, 'last')", [self.topic])
            return self._stand()[0] >= last

        until(there, f"applied up to {last}", patience=5)

    def _stand(self) -> tuple[int, set[int]]:
        """Return applied_seq and what was passed over."""
        passed = self.database.execute("SELECT seq FROM inturn.skip WHERE topic = %s", [self.topic])
        rows = self.database.execute(
            "SELECT applied_seq FROM inturn.key_cursor WHERE topic = %s", [self.topic]
        )
        return (rows[0][0] if rows else 0), {seq for (seq,) in passed}


@pytest.fixture
def model(witness: Database) -> Database:
    """The database that the model walks on."""
    Machine.database, Machine.oracle = witness, Oracle(witness)
    Machine.operator = witness.connect(user=OPERATOR, options="-c lock_timeout=20ms")
    return witness


# Longer than Hypothesis shrinks: the limit would hide what was found.
@pytest.mark.timeout(600)
@sizes("walks", 12, rest=40)
@pytest.mark.usefixtures("model")
def test_model_numbers_in_any_order_keep_every_promise(walks: int) -> None:
    walk(Machine, walks, [Phase.generate, Phase.shrink])


def _append_what_is_waited_for(model: Machine) -> None:
    model.append_and_commit(0, 2)
    model.append_and_commit(0, 1)
    model.promises_hold()


def _append_the_second_first(model: Machine) -> None:
    model.append_and_commit(0, 2)
    model.promises_hold()


@pytest.mark.parametrize(
    ("function", "pattern", "without", "steps"),
    [
        (
            "_look_at_key",
            r"cursor\.ready_at := inturn\._next_ready_at\(cursor, clock_timestamp\(\)\);",
            "",
            _append_what_is_waited_for,
        ),
        (
            "_find_gap",
            r"cursor\.waiting_at := coalesce\(was\.waiting_at, clock_timestamp\(\)\)",
            "cursor.waiting_at := NULL",
            _append_the_second_first,
        ),
    ],
    ids=["wake_in_append_given", "waiting_in_find_gap"],
)
def test_model_finds_what_a_missing_guard_of_given_numbers_breaks(
    model: Database, function: str, pattern: str, without: str, steps: Callable[[Machine], object]
) -> None:
    walk_once(Machine, steps)
    replace_in(model, function, (pattern, without))
    with pytest.raises(AssertionError):
        walk_once(Machine, steps)
