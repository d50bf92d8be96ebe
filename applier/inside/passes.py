"""Passes: which topics have ready keys, and where in each the claims begin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg

from inturn.applier import calls
from inturn.applier.calls.appliers import Suspects
from inturn.applier.inside.batch import OLDEST
from inturn.applier.inside.session import session_of


class Passes:
    """Finds the topics with ready keys, by one statement a pass; one for each worker. See _begin_pass."""

    def __init__(self, schema: str, *, prune: bool = False) -> None:
        self._schema = schema
        self._prune = prune
        self._topics: list[str] = []
        self._on_arrival: frozenset[str] = frozenset()
        # What _begin_pass returned last; to it alone it means something.
        self._last: str | None = None
        self._safe_at: str = OLDEST
        self._hands: dict[str, str] = {}
        #: Seconds from the last pass to when a key of a topic that it did not find is ready; None: none is.
        self.due: float | None = None
        #: The database's clock at the last pass.
        self.looked_at: str = OLDEST

    def serve(self, connection: psycopg.Connection[Any], topics: Sequence[str]) -> None:
        """Take up these topics; a change begins with a pass over everything.

        Raises:
            psycopg.Error: the connection or the database failed.
        """
        arrivals = calls.appliers.list_arrival_topics(self._schema, topics)
        found: list[str] = session_of(connection).call(arrivals)
        self._on_arrival = frozenset(found)
        if set(topics) != set(self._topics):
            self._topics = list(topics)
            self._last, self._safe_at, self._hands = None, OLDEST, {}

    def begin(self, connection: psycopg.Connection[Any]) -> list[str]:
        """Return the topics that have ready keys, the one whose key has been ready the longest first.

        Raises:
            psycopg.Error: the connection or the database failed.
        """
        if not self._topics:
            self.due = None
            return []
        found, hands, due, self.looked_at, self._safe_at, self._last = session_of(connection).call(
            calls.appliers.begin_pass(self._schema, self._topics, self._last)
        )
        self._hands = dict(zip(found, hands, strict=True))
        self.due = None if due is None else max(float(due), 0.0)
        return list(found)

    def next_suspect(
        self, connection: psycopg.Connection[Any], topics: Sequence[str], since: str | None, began_at: str
    ) -> Suspects:
        """Return when the next key is ready that was put off, as an applier was lost with it.

        since, began_at: see calls.appliers.next_suspect.

        Raises:
            psycopg.Error: the connection or the database failed.
        """
        return session_of(connection).call(calls.appliers.next_suspect(self._schema, topics, since, began_at))

    def prune(self, connection: psycopg.Connection[Any]) -> bool:
        """Prune a batch, if that is asked for and due; return whether it was.

        Raises:
            psycopg.Error: the connection or the database failed.
        """
        return self._prune and session_of(connection).call(calls.appliers.prune_idle(self._schema))

    def needed(self, topics: Iterable[str]) -> bool:
        """Return whether only a pass finds what has come in these topics: it has to be numbered first."""
        return not self._on_arrival.isdisjoint(topics)

    def hand(self, topic: str) -> str:
        """Return from when on to claim in a topic."""
        return self._hands.get(topic, self._safe_at)

    @property
    def ready(self) -> list[str]:
        """The topics in which the last pass found ready keys, in whosever hands."""
        return sorted(self._hands)

    def hand_among_many(self, connection: psycopg.Connection[Any], topic: str, width: int) -> str:
        """Return from when on to claim in a topic with more keys than a visit takes, beside other workers.

        Raises:
            psycopg.Error: the connection or the database failed.
        """
        call = calls.appliers.spread_out(self._schema, topic, self.hand(topic), width)
        return session_of(connection).call(call)
