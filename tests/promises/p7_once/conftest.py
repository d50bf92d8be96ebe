"""What the bad days of HTTP targets begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.b_server import (
    B,
)


@pytest.fixture
def b() -> Iterator[B]:
    with B() as service:
        yield service
