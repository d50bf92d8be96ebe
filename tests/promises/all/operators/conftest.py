"""What the tests of operators' actions begin with."""

from __future__ import annotations

import pytest
from support.database import Database


@pytest.fixture
def orders(witness: Database) -> Database:
    """The witness database; a command that fails holds its key at once."""
    witness.execute("UPDATE inturn.topic SET max_attempts = 1")
    return witness
