"""Connections: how a process connects to its database, always alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from inturn.schema.connection import connect, connect_async

_NAME = "inturn apply"


@dataclass(frozen=True, slots=True)
class Connections:
    """Makes connections in autocommit, with isolation level READ COMMITTED.

    Attributes:
        prepare_threshold: as psycopg has it; None: the driver prepares nothing.
    """

    dsn: str
    prepare_threshold: int | None

    def connect(self) -> psycopg.Connection[Any]:
        return connect(
            self.dsn,
            prepare_threshold=self.prepare_threshold,
            application_name=_NAME,
            for_handlers=True,
        )

    async def connect_async(self) -> psycopg.AsyncConnection[Any]:
        return await connect_async(self.dsn, prepare_threshold=self.prepare_threshold, application_name=_NAME)
