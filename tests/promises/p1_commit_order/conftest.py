"""What the tests of arrival begin with."""

from __future__ import annotations

import pytest
from support.database import Database


@pytest.fixture
def posts(witness: Database) -> Database:
    """The orders, and topic `posts`, which numbers on arrival and has the same target."""
    witness.execute("SELECT inturn.create_topic('posts', 'sql:app.apply_order', numbering => 'arrival')")
    return witness
