"""Numbering on arrival under Hypothesis: transactions that overlap at will, small passes, locked keys."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from support.combinations import sizes
from support.database import Database, Session, until
from support.race import replace_in
from support.walks import walk, walk_once

#: Long walks: on one server version.
pytestmark = pytest.mark.slow

_examples = itertools.count(1)
_KEYS = st.sampled_from("xy")
_CALLERS = st.integers(0, 1)


@dataclass
class Append:
    """One append, on the model's clock: when it began, and when its transaction was committed."""

    name: str
    key: str
    began: int
    committed: int | None = None


class Machine(RuleBasedStateMachine):
    """Two callers, one applier whose passes may stay open or be undone, one operator who locks a key."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.topic = f"arrival{next(_examples)}"
        self.database.execute("SELECT inturn.create_topic(%s, numbering => 'arrival')", [self.topic])
        self.callers = [self.database.session() for _ in range(2)]
        self.applier, self.operator = self.database.session(), self.database.session()
        self.clock = itertools.count()
        # Keys that an operator can lock.
        self.database.execute("SELECT inturn.append_many(%s, '{x,y}', '{first,first}')", [self.topic])
        self.database.execute("SELECT inturn._number_topic(%s, 10)", [self.topic])
        #: What each transaction that is open has appended: the callers', then the applier's.
        self.open: list[list[Append]] = [[], [], []]
        self.appends: list[Append] = []

    @rule(who=_CALLERS, key=_KEYS, once=st.sampled_from(["", "", "k1", "k2"]))
    def append(self, who: int, key: str, once: str) -> None:
        if once and any(a.name == once + key for a in itertools.chain(self.appends, *self.open)):
            return  # it would wait, or be a repeat: test_p1_arrival has these
        self._append(self.callers[who], who, key, once)

    @precondition(lambda self: self.passing)
    @rule(key=_KEYS)
    def append_behind_the_pass(self, key: str) -> None:
        self._append(self.applier, 2, key, "")

    @rule(who=_CALLERS)
    def take_a_transaction_number(self, who: int) -> None:
        self.callers[who].execute("SELECT pg_current_xact_id()")

    @rule(who=_CALLERS, committed=st.sampled_from([True, True, True, False]))
    def end(self, who: int, committed: bool) -> None:
        self._end(self.callers[who], who, committed)

    @rule(limit=st.integers(1, 4), end=st.sampled_from(["commit", "commit", "stay open"]))
    def number(self, limit: int, end: str) -> None:
        self._number(limit)
        if end == "commit":
            self._end(self.applier, 2, True)

    @precondition(lambda self: self.passing)
    @rule(committed=st.booleans())
    def end_pass(self, committed: bool) -> None:
        self._end(self.applier, 2, committed)

    @precondition(lambda self: not self.passing)
    @rule(key=_KEYS)
    def lock_key(self, key: str) -> None:
        self.operator.execute(
            "SELECT FROM inturn.key_sequence WHERE topic = %s AND key = %s FOR UPDATE", [self.topic, key]
        )

    @rule()
    def unlock(self) -> None:
        self.operator.rollback()

    def teardown(self) -> None:
        try:
            for who, session in enumerate([*self.callers, self.applier]):
                self._end(session, who, True)
            self.operator.rollback()
            until(self._all_numbered, "all numbered", patience=5)
            for key in "xy":
                self._check(key)
        finally:
            for session in (*self.callers, self.applier, self.operator):
                session.close()

    @property
    def passing(self) -> bool:
        return bool(self.applier.connection.info.transaction_status)

    def _append(self, session: Session, who: int, key: str, once: str) -> None:
        began = next(self.clock)
        append = Append(once + key if once else str(began), key, began)
        session.execute(
            "SELECT inturn.append(%s, %s, %s, idempotency_key => %s)",
            [self.topic, key, append.name, once or None],
        )
        self.open[who].append(append)

    def _end(self, session: Session, who: int, committed: bool) -> None:
        if committed:
            session.commit()
            for append in self.open[who]:
                append.committed = next(self.clock)
            self.appends += self.open[who]
        else:
            session.rollback()
        self.open[who] = []

    def _number(self, limit: int) -> None:
        self.applier.execute("SELECT inturn._number_topic(%s, %s)", [self.topic, limit])

    def _all_numbered(self) -> bool:
        self._number(3)
        self.applier.commit()
        return not self.database.value("SELECT count(*) FROM inturn.intake WHERE topic = %s", [self.topic])

    def _check(self, key: str) -> None:
        """Every committed command once; what was committed before another began comes first."""
        rows = self.database.execute(
            "SELECT seq, name FROM inturn.command_log WHERE topic = %s AND key = %s ORDER BY seq",
            [self.topic, key],
        )
        assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
        appends = {a.name: a for a in self.appends if a.key == key}
        assert rows[0][1] == "first"
        order = [appends[name] for _, name in rows[1:]]
        assert len(order) == len(appends)
        for place, later in enumerate(order):
            for earlier in order[:place]:
                assert later.committed is not None
                assert later.committed > earlier.began, f"{later} came before {earlier} began"
        # Those of one transaction: in the order in which it made them.
        for first, second in itertools.pairwise(order):
            assert first.committed != second.committed


# Longer than Hypothesis shrinks: the limit would hide what was found.
@pytest.mark.timeout(600)
@sizes("walks", 20, rest=60)
def test_model_numbering_on_arrival_keeps_real_time_order(database: Database, walks: int) -> None:
    Machine.database = database
    walk(Machine, walks, [Phase.generate, Phase.shrink])


def _append_one_after_the_other(model: Machine) -> None:
    model.append(0, "x", "")
    model.end(0, committed=True)
    model.append(0, "x", "")


def _append_behind_what_was_left_behind(model: Machine) -> None:
    model.append(0, "x", "")
    model.lock_key("x")
    model.end(0, committed=True)
    model.number(1, "commit")
    model.append(0, "x", "")


def _commit_after_a_pass_has_gone_by(model: Machine) -> None:
    model.append(1, "x", "")
    model.append(0, "x", "")
    model.end(0, committed=True)
    model.number(3, "commit")


def _append_more_than_a_pass_takes(model: Machine) -> None:
    for _ in range(4):
        model.append(0, "x", "")


@pytest.mark.parametrize(
    ("function", "pattern", "without", "steps"),
    [
        pytest.param(
            "_append_arrived",
            r"ORDER BY m\.id\)",
            "ORDER BY m.id DESC)",
            _append_one_after_the_other,
            id="in_order_of_ids",
        ),
        pytest.param(
            "_number_topic",
            r"UNION SELECT k\.key FROM unnest\(batch\.keys\) k \(key\) WHERE EXISTS \(.*?NULL\)(?=\);)",
            "",
            _append_behind_what_was_left_behind,
            id="left_behind_first",
        ),
        pytest.param(
            "_appeared",
            r"SELECT x FROM pg_catalog\.pg_snapshot_xip\(seen\) x UNION",
            "",
            _commit_after_a_pass_has_gone_by,
            id="those_that_ran_then",
        ),
        pytest.param(
            "_number_topic",
            r"more := batch\.is_full;",
            "",
            _append_more_than_a_pass_takes,
            id="more_of_the_same",
        ),
    ],
)
def test_model_finds_what_a_missing_guard_of_arrival_breaks(
    database: Database, function: str, pattern: str, without: str, steps: Callable[[Machine], object]
) -> None:
    Machine.database = database
    walk_once(Machine, steps)
    replace_in(database, function, (pattern, without))
    with pytest.raises(AssertionError):
        walk_once(Machine, steps)
