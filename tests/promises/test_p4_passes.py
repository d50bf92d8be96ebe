"""P4 and passes: a ready key is found by the next pass, however late what made it ready was committed.

A pass leaves out what turns before it left in the index, and no ticket that can still come to be seen.
"""

from __future__ import annotations

import pytest
from support.database import Database
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
