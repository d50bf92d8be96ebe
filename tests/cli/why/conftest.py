"""What several tests of `why` begin with."""

from __future__ import annotations

import pytest
from support.database import Database
from support.race import append


@pytest.fixture
def drained(witness: Database) -> Database:
    """Key a with one command, which is applied."""
    append(witness, "a")
    witness.execute("CALL inturn.apply()")
    return witness
