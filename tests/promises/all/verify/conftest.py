"""What most tests of `verify` begin with."""

from __future__ import annotations

import pytest
from support.database import Database
from support.history import make_history
from support.verifying import verified


@pytest.fixture
def history(witness: Database) -> Database:
    make_history(witness)
    assert verified(witness) == []
    return witness
