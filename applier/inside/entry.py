"""Entry: what a worker says in the registry of appliers, apart from being there."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psycopg

from inturn.applier import calls
from inturn.applier.inside.session import session_of


class Entry:
    """The entry of one worker; a worker without a name says nothing."""

    def __init__(self, schema: str, applier_id: str | None) -> None:
        self._schema = schema
        self._applier_id = applier_id
        # What it has said last; what its process has said at the start is not known here.
        self._careful: list[str] | None = None

    def say_careful(self, connection: psycopg.Connection[Any], topics: list[str] | None) -> None:
        """Name the topics whose next keys it takes alone, if these have changed: see _careful_keys.

        topics: None: it has not looked yet.

        Raises:
            psycopg.Error: the connection or the database failed.
        """
        if self._applier_id is None or topics is None or topics == self._careful:
            return
        session_of(connection).call(calls.appliers.note_careful(self._schema, self._applier_id, topics))
        self._careful = topics

    def say_end(self, connection: psycopg.Connection[Any]) -> None:
        """Say that it has ended as it should, unless a key that it has met is a suspect.

        So whoever starts next need not take the first keys alone; see _careful_keys. What it cannot say, it
        leaves: that costs the next one a second, and no key anything.
        """
        if self._applier_id is not None:
            with suppress(psycopg.Error):
                session_of(connection).call(calls.appliers.end_applier(self._schema, self._applier_id))
