"""Connections: how a process connects to its database, always alike."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import psycopg

from inturn.applier import calls
from inturn.schema.connection import connect, connect_async

log = logging.getLogger("inturn.applier")

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


def warn_superuser(connection: psycopg.Connection[Any]) -> None:
    """Log a warning when a connection applies as a superuser: whatever handlers do, they do as one.

    Raises:
        psycopg.Error: the connection or the database failed.
    """
    if user := calls.session.superuser().on(connection):
        log.warning(
            "applying as %s, a superuser: targets and handlers can do anything on its server."
            " Apply with a login of its own that has inturn_applier",
            user,
        )
