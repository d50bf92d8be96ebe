"""What a refused statement told its caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from support.database import Database
from support.statements import login_of


@dataclass(frozen=True)
class Refusal:
    sqlstate: str
    message: str
    hint: str


def refusal(
    by: psycopg.Connection[Any] | Database, query: str, parameters: Sequence[Any] | None = None
) -> Refusal:
    """Run a statement that has to fail, and return what was said.

    Args:
        by: a connection, or the database: then by its own one of the role whose the statement is.
        query, parameters: the statement.
    """
    connection = by.as_login(login_of(query)) if isinstance(by, Database) else by
    with pytest.raises(psycopg.Error) as raised:
        connection.execute(query, parameters)
    diagnostic = raised.value.diag
    return Refusal(
        diagnostic.sqlstate or "",
        diagnostic.message_primary or "",
        diagnostic.message_hint or "",
    )
