"""P4 and passes: a ready key is found by the next pass, however late what made it ready was committed.

A pass leaves out what turns before it left in the index, and no ticket that can still come to be seen.
"""

from __future__ import annotations

import pytest
from support.database import Database, Session
from support.race import append

from inturn.applier.passes import Passes


class Round:
    """An applier that goes round: passes, and what it claims where they say."""

    def __init__(self, database: Database) -> None:
        self._connection = database.connect()
        self._passes = Passes("inturn")
        self._passes.serve(["orders"])

    def claim(self) -> list[str]:
        """Make a pass, and return the keys that the visits after it would claim; they stay as they are."""
        keys: list[str] = []
        for topic in self._passes.begin(self._connection):
            rows = self._connection.execute(
                "SELECT key FROM inturn.claim(%s, %s::timestamptz, 100)", [topic, self._passes.hand(topic)]
            )
            keys += [key for (key,) in rows]
        return keys


@pytest.mark.parametrize("youngest", [True, False])
@pytest.mark.parametrize("passes", [0, 1, 2, 3])
def test_p4_a_key_whose_caller_commits_between_two_passes_is_found_by_the_second(
    witness: Database, passes: int, youngest: bool
) -> None:
    """No transaction that began after the caller's has ended: no snapshot shows that its number is given."""
    applier = Round(witness)

    def others() -> None:
        if not youngest:
            witness.execute("SELECT pg_current_xact_id()")

    assert applier.claim() == []
    caller = witness.session()
    append(caller, "x")
    for _ in range(passes):
        others()
        assert applier.claim() == []
    others()
    caller.commit()
    for _ in range(3):
        others()
        assert applier.claim() == ["x"]


def test_p4_a_topic_that_becomes_ready_during_the_pass_is_found_with_its_place(witness: Database) -> None:
    """By one look at the clock: two would find it in one list and not in the other."""
    append(witness, "x")
    witness.execute("""
        CREATE SEQUENCE app.tick;
        CREATE FUNCTION app.clock() RETURNS timestamptz LANGUAGE sql VOLATILE AS
            $$ SELECT timestamptz '2030-01-01' + nextval('app.tick') * interval '1 us' $$;
        SELECT inturn.create_topic('later', 'python');
        SELECT inturn.append('later', 'y', 'insert');
    """)
    definition = witness.value("SELECT pg_get_functiondef('inturn.begin_pass'::regproc)")
    witness.execute(definition.replace("clock_timestamp()", "app.clock()"))
    for tick in range(1, 12):
        witness.execute("SELECT setval('app.tick', 1)")
        witness.execute(
            "UPDATE inturn.ticket SET ready_at = timestamptz '2030-01-01' + %s * interval '1 us'"
            " WHERE topic = 'later'",
            [tick],
        )
        found, hands, due = witness.execute(
            "SELECT found, hands::text[], due FROM inturn.begin_pass('{orders,later}', NULL)"
        )[0]
        assert len(found) == len(hands) == (1 if due else 2), tick


def _leave_hint(session: Session, key: str) -> None:
    """Append at REPEATABLE READ, which leaves a hint."""
    session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    append(session, key)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_p4_a_hint_that_another_applier_held_at_the_pass_is_taken_by_a_later_one(
    witness: Database, end: str
) -> None:
    append(witness, "x")
    witness.execute("CALL inturn.apply()")
    caller, other = witness.session(), witness.session()
    applier = Round(witness)
    assert applier.claim() == []
    _leave_hint(caller, "x")
    assert applier.claim() == []
    caller.commit()
    other.execute("SELECT inturn.take_hints('{orders}')")
    for _ in range(3):
        assert applier.claim() == []
    {"commit": other.commit, "rollback": other.rollback}[end]()
    for _ in range(3):
        assert applier.claim() == ["x"]


def test_p4_more_hints_than_a_pass_takes_are_taken_by_the_next_ones(witness: Database) -> None:
    count = 1500
    many = "SELECT inturn.append_many('orders', array_agg('k' || n), array_agg('insert'::text))"
    witness.execute(f"{many} FROM generate_series(1, {count}) n")
    witness.execute("CALL inturn.apply()")
    applier = Round(witness)
    caller = witness.session()
    caller.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    caller.execute(f"{many} FROM generate_series(1, {count}) n")
    assert applier.claim() == []
    caller.commit()
    for _ in range(4):
        applier.claim()
    assert witness.value("SELECT count(*) FROM inturn.ticket") == count
