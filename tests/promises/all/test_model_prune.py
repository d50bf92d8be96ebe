"""Pruning and forgetting under Hypothesis, beside callers, appliers, lease clients and an operator."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.combinations import sizes
from support.database import Database, until
from support.race import blocked, kill, replace_in
from support.roles import OPERATOR
from support.walks import walk, walk_once

#: Long walks: on one server version.
pytestmark = pytest.mark.slow

_examples = itertools.count(1)
_names = itertools.count(1)
_KEYS = st.sampled_from("ab")


class Machine(RuleBasedStateMachine):
    """Whatever goes and comes back: numbers only rise, and what was committed takes effect once, in order."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.topic = f"prune{next(_examples)}"
        self.caller, self.early = self.database.session(), self.database.session()
        self.applier, self.pruner = self.database.session(), self.database.session()
        self.operator = self.database.connect(user=OPERATOR, options="-c lock_timeout=20ms")
        #: The key that the caller's open transaction has appended to, and the command's name.
        self.appending: tuple[str, str] | None = None
        self.snapshot = self.turning = self.pruning = False
        #: What a lease client has: key, epoch, and what it may do, in order.
        self.lease: tuple[str, int, list[tuple[int, str]]] | None = None
        self.committed: dict[str, list[str]] = {self._key(name): [] for name in "ab"}

    def _key(self, name: str) -> str:
        return f"{self.topic} {name}"

    @initialize(numbering=st.sampled_from(["assigned", "assigned", "arrival"]))
    def begin(self, numbering: str) -> None:
        self.numbering = numbering
        self.database.execute(
            "SELECT inturn.create_topic(%s, 'sql:app.apply_order', max_attempts => 1, batch_commands => 2,"
            " numbering => %s)",
            [self.topic, numbering],
        )
        self.database.execute("UPDATE inturn.topic SET retain = '0' WHERE name = %s", [self.topic])

    # Callers.

    @rule(name=_KEYS, fails=st.sampled_from([False, False, False, True]))
    def append(self, name: str, *, fails: bool) -> None:
        key = self._key(name)
        if not self._is_held(key):
            self._append(self.database, key, "fail" if fails else f"n{next(_names)}")

    def _append(self, session: Any, key: str, command: str) -> None:
        self._calm()
        session.execute("SELECT inturn.append(%s, %s, %s)", [self.topic, key, command])
        self.committed[key].append(command)

    def _is_held(self, key: str) -> bool:
        return self.appending is not None and self.appending[0] == key

    @precondition(lambda self: self.appending is None)
    @rule(name=_KEYS)
    def begin_to_append(self, name: str) -> None:
        self._calm()
        self.appending = self._key(name), f"n{next(_names)}"
        self.caller.execute("SELECT inturn.append(%s, %s, %s)", [self.topic, *self.appending])

    @precondition(lambda self: self.appending is not None)
    @rule(how=st.sampled_from(["commit", "commit", "rollback"]))
    def end_the_append(self, how: str) -> None:
        if how == "commit":
            self.caller.commit()
            key, command = self.appending or ("", "")
            self.committed[key].append(command)
        else:
            self.caller.rollback()
        self.appending = None

    @rule()
    def take_a_snapshot(self) -> None:
        self.early.rollback()
        self.early.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        self.early.execute("SELECT FROM inturn.schema_version")
        self.snapshot = True

    @precondition(lambda self: self.snapshot)
    @rule(name=_KEYS)
    def append_on_the_snapshot(self, name: str) -> None:
        if self._is_held(self._key(name)):
            return
        try:
            self._append(self.early, self._key(name), f"n{next(_names)}")
            self.early.commit()
        except psycopg.errors.SerializationFailure:
            self.early.rollback()
        self.snapshot = False

    # Appliers.

    @precondition(lambda self: not self.turning)
    @rule()
    def take_turns(self) -> None:
        if self.numbering == "arrival":
            self._calm()
        self.applier.execute("SELECT inturn._number_arrivals(ARRAY[%s])", [self.topic])
        self.applier.commit()
        self.database.execute("SELECT inturn._take_hints(ARRAY[%s])", [self.topic])
        running = self.applier.begin("SELECT inturn.apply_batch(%s, '-infinity', 1, 'model')", [self.topic])
        assert not blocked(self.database, self.applier, running), "an applier waits"
        self.turning = True

    @precondition(lambda self: self.turning)
    @rule(how=st.sampled_from(["commit", "commit", "commit", "rollback"]))
    def end_turns(self, how: str) -> None:
        {"commit": self.applier.commit, "rollback": self.applier.rollback}[how]()
        self.turning = False

    @precondition(lambda self: self.lease is None)
    @rule()
    def claim(self) -> None:
        rows = self.database.execute(
            "SELECT key, epoch, seq, name FROM inturn.claim(ARRAY[%s], 1, '1 hour', 'client')", [self.topic]
        )
        if rows:
            key, epoch = rows[0][:2]
            self.lease = key, epoch, [(seq, name) for _, _, seq, name in rows if seq is not None]

    @precondition(lambda self: self.lease is not None)
    @rule(step=st.sampled_from(["work", "work", "work", "release"]))
    def go_on_with_the_lease(self, step: str) -> None:
        self._calm()
        key, epoch, commands = self.lease or ("", 0, [])
        if commands and step == "work":
            seq, name = commands.pop(0)
            call, what = "advance(%s, %s, %s, %s)", [self.topic, key, epoch, seq]
        else:
            name, self.lease = "", None
            call, what = "release(%s, %s, %s)", [self.topic, key, epoch]
        try:
            self.database.execute(f"SELECT inturn.{call}", what)
        except psycopg.Error as error:
            if error.sqlstate != "IT030":
                raise
            self.lease = None
            return
        if name:
            self.database.execute(
                "INSERT INTO app.witness (key, seq, name) VALUES (%s, %s, %s)", [key, what[-1], name]
            )

    # The operator.

    @rule(name=_KEYS, action=st.sampled_from(["skip", "cancel_rest", "pause", "resume", "replay"]))
    def operate(self, name: str, action: str) -> None:
        self._calm()
        key = self._key(name)
        if self._is_held(key):
            return
        (found,) = self.database.execute(
            "SELECT max(applied_seq) FROM inturn.key_cursor WHERE (topic, key) = (%s, %s)", [self.topic, key]
        )[0]
        at = found or 0
        pending = self.database.execute(
            "SELECT name FROM inturn.command_log WHERE (topic, key) = (%s, %s) AND seq > %s ORDER BY seq",
            [self.topic, key, at],
        )
        seqs = {"skip": [at + 1], "replay": [at]}.get(action, [])
        arguments = ", ".join(["%s"] * (3 + len(seqs)))
        try:
            (done,) = self.operator.execute(
                f"SELECT (a.after ->> 'name') FROM inturn.{action}({arguments}) a",
                [self.topic, key, *seqs, "why"],
            ).fetchone() or (None,)
        except psycopg.Error as error:
            if error.sqlstate not in {"IT040", "IT041", "IT042", "55P03"}:
                raise
            return
        if action == "replay":
            # It takes its number at once; what has none yet comes after it.
            waiting = self.database.value(
                "SELECT count(*) FROM inturn.intake WHERE (topic, key) = (%s, %s)", [self.topic, key]
            )
            self.committed[key].insert(len(self.committed[key]) - waiting, str(done))
        elif action != "pause":
            skipped = {"skip": 1, "cancel_rest": len(pending)}.get(action, 0)
            effects = len(self._effects(key))
            left = [each for each in self.committed[key] if not each.startswith("-")]
            for place, command in enumerate(left[effects : effects + skipped]):
                assert command == pending[place][0]
                self._pass_over(key)

    def _pass_over(self, key: str) -> None:
        """Mark the key's next command, behind those that took effect, as passed over."""
        place = 0
        for _ in range(len(self._effects(key)) + 1):
            while self.committed[key][place].startswith("-"):
                place += 1
            place += 1
        self.committed[key][place - 1] = f"-{self.committed[key][place - 1]}"

    # Pruning.

    @rule(forget=st.booleans(), rows=st.sampled_from([1, 1000]), end=st.sampled_from(["now", "now", "later"]))
    def prune(self, *, forget: bool, rows: int, end: str) -> None:
        self._end_prune()
        self.database.execute(
            "UPDATE inturn.topic SET forget_idle_after = CASE WHEN %s THEN interval '0' END WHERE name = %s",
            [forget, self.topic],
        )
        running = self.pruner.begin("SELECT inturn.prune_batch(%s, max_rows => %s)", [self.topic, rows])
        assert not blocked(self.database, self.pruner, running), "a prune waits"
        running.result()
        self.pruning = True
        if end == "now":
            self._end_prune()

    @precondition(lambda self: self.pruning)
    @rule()
    def kill_the_prune(self) -> None:
        kill(self.database, self.pruner)
        self.pruner, self.pruning = self.database.session(), False

    def _end_prune(self) -> None:
        self.pruner.commit()
        self.pruning = False

    def _calm(self) -> None:
        """End what the next step would wait for."""
        if self.turning:
            self.end_turns("commit")
        self._end_prune()

    # What has to hold.

    def _effects(self, key: str) -> list[str]:
        rows = self.database.execute("SELECT seq, name FROM app.witness WHERE key = %s ORDER BY id", [key])
        seqs = [seq for seq, _ in rows]
        assert seqs == sorted(set(seqs)), "a number went back"
        return [name for _, name in rows]

    @invariant()
    def everything_fits(self) -> None:
        found = self.database.execute("SELECT violation, key, says FROM inturn.verify(%s)", [self.topic])
        assert found == []
        for key, commands in self.committed.items():
            left = [each for each in commands if not each.startswith("-")]
            effects = self._effects(key)
            assert effects == left[: len(effects)]

    def teardown(self) -> None:
        try:
            self._end()
        finally:
            # A walk that failed too: shrinking takes hundreds of them.
            for session in (self.caller, self.early, self.applier, self.pruner):
                session.close()
            self.operator.close()

    def _end(self) -> None:
        """Everything is applied to its end, and then everything goes."""
        if self.appending:
            self.end_the_append("commit")
        self._calm()
        self.early.rollback()
        while self.lease is not None:
            self.go_on_with_the_lease("release")
        until(self._is_done, "everything applied or skipped")
        self.everything_fits()
        for key, commands in self.committed.items():
            assert self._effects(key) == [each for each in commands if not each.startswith("-")]
        self.prune(forget=True, rows=1000, end="now")
        self.everything_fits()
        for table in ("command_log", "turn", "skip", "key_sequence"):
            assert self.database.execute(f"SELECT FROM inturn.{table} WHERE topic = %s", [self.topic]) == []

    def _is_done(self) -> bool:
        for name in "ab":
            self.operate(name, "resume")
            state = self.database.execute(
                "SELECT inturn.key_state(c) FROM inturn.key_cursor c WHERE (topic, key) = (%s, %s)",
                [self.topic, self._key(name)],
            )
            if state == [("held",)]:
                self.operate(name, "skip")
        self.database.execute("SELECT inturn._take_hints(ARRAY[%s])", [self.topic])
        self.database.execute("CALL inturn.apply(ARRAY[%s])", [self.topic])
        return not self.database.execute(
            "SELECT FROM inturn.ticket WHERE topic = %(t)s UNION ALL SELECT FROM inturn.intake"
            " WHERE topic = %(t)s UNION ALL SELECT FROM inturn.wake_hint WHERE topic = %(t)s",
            {"t": self.topic},  # type: ignore[arg-type]
        )


@pytest.fixture
def model(witness: Database) -> Database:
    """The database that the model walks on."""
    witness.execute("""
        CREATE OR REPLACE FUNCTION app.apply_order(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            IF command.name = 'fail' THEN
                RAISE EXCEPTION 'refused';
            END IF;
            INSERT INTO app.witness (key, seq, name) VALUES (command.key, command.seq, command.name);
        END $$;
    """)
    Machine.database = witness
    return witness


# Longer than Hypothesis shrinks: the limit would hide what was found.
@pytest.mark.timeout(600)
@sizes("walks", 12, rest=40)
@pytest.mark.usefixtures("model")
def test_model_pruning_beside_everybody_keeps_every_promise(walks: int) -> None:
    walk(Machine, walks, [Phase.generate, Phase.shrink], steps=40)


def _apply_one(model: Machine) -> None:
    model.begin("assigned")
    model.append("a", fails=False)
    model.take_turns()
    model.end_turns("commit")


def _prune(model: Machine) -> None:
    _apply_one(model)
    model.prune(forget=False, rows=1000, end="now")
    model.everything_fits()


def _prune_beside_a_caller(model: Machine) -> None:
    _apply_one(model)
    model.begin_to_append("a")
    model.prune(forget=False, rows=1000, end="now")


def _prune_in_the_middle_of_a_lease(model: Machine) -> None:
    model.begin("assigned")
    for _ in range(2):
        model.append("a", fails=False)
    model.claim()
    model.go_on_with_the_lease("work")
    model.prune(forget=False, rows=1000, end="now")
    model.go_on_with_the_lease("work")
    model.everything_fits()


def _come_back_after_being_forgotten(model: Machine) -> None:
    _apply_one(model)
    model.prune(forget=True, rows=1000, end="now")
    model.append("a", fails=False)
    model.take_turns()
    model.end_turns("commit")
    model.everything_fits()


@pytest.mark.parametrize(
    ("function", "pattern", "without", "steps"),
    [
        (
            "_find_cuts",
            r"NOT \(c\.epoch = u\.epoch AND m\.claimed_by IS NOT NULL\)",
            "true",
            _prune_in_the_middle_of_a_lease,
        ),
        ("_begin_keys", r"IF NOT FOUND THEN", "IF true THEN", _come_back_after_being_forgotten),
        ("prune_batch", r" FOR UPDATE SKIP LOCKED", "", _prune_beside_a_caller),
        ("_cut_turns", r"AND u\.epoch < c\.epoch", "AND u.epoch <= c.epoch", _prune),
    ],
    ids=[
        "a_turn_that_may_grow_is_no_witness",
        "new_keys_begin_above_forgotten_ones",
        "a_key_is_locked_before_it_is_cut",
        "the_last_turn_stays",
    ],
)
def test_model_finds_what_a_missing_guard_of_pruning_breaks(
    model: Database, function: str, pattern: str, without: str, steps: Callable[[Machine], object]
) -> None:
    walk_once(Machine, steps)
    replace_in(model, function, (pattern, without))
    with pytest.raises(AssertionError):
        walk_once(Machine, steps)
