"""What a refused statement told its caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest


@dataclass(frozen=True)
class Refusal:
    sqlstate: str
    message: str
    hint: str


def refusal(
    connection: psycopg.Connection[Any], query: str, parameters: Sequence[Any] | None = None
) -> Refusal:
    """Run a statement that has to fail and return what was said."""
    with pytest.raises(psycopg.Error) as raised:
        connection.execute(query, parameters)
    diagnostic = raised.value.diag
    return Refusal(
        diagnostic.sqlstate or "",
        diagnostic.message_primary or "",
        diagnostic.message_hint or "",
    )
