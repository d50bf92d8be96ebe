"""Chooser: which topics a process serves, and by what; and what it announces of itself."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from shlex import quote
from typing import Any, TypeVar

import psycopg

from inturn.applier import calls
from inturn.applier.breaker import Breaker, reports
from inturn.applier.handlers import Applier
from inturn.applier.inside.batch import Target
from inturn.applier.inside.hand import Hand
from inturn.applier.inside.visits import careful_at_first
from inturn.applier.metrics.tallies import Tallies
from inturn.applier.outside.effect import Timeouts
from inturn.applier.outside.lanes import OutsideTarget
from inturn.applier.process.doubt import Doubt, note_announced
from inturn.applier.stop import Stop
from inturn.applier.targets import MissingPart, Parts, Served, find_kind, is_posted, kind_of, refuse_misfit
from inturn.schema.advice import advised
from inturn.schema.errors import InturnError, TargetRefused, UnknownTopic
from inturn.schema.version import HEAD, check_version

log = logging.getLogger("inturn.applier")

_T = TypeVar("_T", Target, OutsideTarget)


class Chooser:
    """The chooser of one process. Its workers ask it again every few seconds, each on its own connection."""

    def __init__(
        self,
        applier: Applier | None,
        only: Sequence[str],
        *,
        schema: str,
        stop: Stop,
        http_timeouts: Timeouts,
        start_outside: Callable[[], None],
        others_breakers: Callable[[], Mapping[str, Breaker]],
        abandoned: Callable[[], int],
        tallies: Tallies,
    ) -> None:
        """Make one.

        Args:
            applier: the handlers that there are.
            only: the topics to serve; empty: every one that can be.
            start_outside: called when there is a topic that is applied outside the database.
            others_breakers: those of the work outside the database.
            abandoned: how many handlers were, because they did not return.
            tallies: learn the database's time, now and then.
        """
        self._applier = applier
        self._only = list(only)
        self._schema = schema
        self._stop = stop
        self._http_timeouts = http_timeouts
        self._start_outside = start_outside
        self._others_breakers = others_breakers
        self._abandoned = abandoned
        self._tallies = tallies
        self._breakers: dict[str, Breaker] = {}
        self._refused: set[str] = set()
        self._posted: frozenset[str] = frozenset()
        self._careful: dict[str, int] = {}
        self._most, self._doubt = 0, Doubt(schema)

    def inside(
        self,
        connection: psycopg.Connection[Any],
        applier_id: str,
        *,
        hand: Hand | None = None,
        strict: bool = False,
    ) -> list[Target]:
        """Choose the topics to be served in the database's transactions; see _agreed.

        strict: at the start; raises TargetRefused as `served` does.
        """

        def choose() -> list[Target]:
            rows = self.served(connection, strict=strict)
            if not strict and self.outside_targets(rows):
                self._start_outside()
            targets = [
                kind_of(row).inside(row, self._parts(row.topic, applier_id, hand))
                for row in rows
                if find_kind(row.target)  # of the others outside_targets says that they are not served
            ]
            return [target for target in targets if target is not None]

        return self._agreed(connection, applier_id, choose, first=strict)

    def outside(self, connection: psycopg.Connection[Any], applier_id: str) -> list[OutsideTarget]:
        """Choose the topics to be served outside of them; see _agreed."""
        return self._agreed(connection, applier_id, lambda: self.outside_targets(self.served(connection)))

    def careful_keys(self, topic: str) -> float:
        """Return how many keys of a topic each worker takes alone at first; inf: while there is doubt."""
        if self._doubt.is_about(topic):
            return math.inf
        return self._most if self._doubt.was_about(topic) else self._careful.get(topic, self._most)

    def _agreed(
        self,
        connection: psycopg.Connection[Any],
        applier_id: str,
        choose: Callable[[], list[_T]],
        *,
        first: bool = False,
    ) -> list[_T]:
        """Choose topics, announce the applier that serves them, and check the schema.

        In this order: an applier that the schema does not fit is announced too, so that
        `inturn why` can tell that there is one.
        """
        try:
            targets = choose()
            topics = [target.topic for target in targets]
            self._announce(connection, applier_id, topics, careful_at_first() if first else None)
        except (InturnError, psycopg.ProgrammingError):
            # A part that another revision lacks: that is the reason, and better said.
            check_version(connection, self._schema)
            raise
        check_version(connection, self._schema)
        return targets

    def _announce(
        self, connection: psycopg.Connection[Any], applier_id: str, topics: list[str], most: int | None
    ) -> None:
        """Announce an applier; the first one of the process asks which topics' first keys are taken alone.

        most: how many of them; None: it is not the first one.
        """
        down = reports({**self._breakers, **self._others_breakers()}, topics, connection.info)
        process = calls.appliers.Process(socket.gethostname(), os.getpid(), HEAD)
        backend_pid, abandoned = connection.info.backend_pid, self._abandoned()
        if most:
            self._doubt.find(connection)
        elif most is None:
            self._doubt.look(connection)
        note_announced(applier_id)
        careful, now = calls.appliers.announce_applier(
            self._schema, applier_id, topics, process, backend_pid, down, abandoned, most
        ).on(connection)
        if most is not None and careful is not None:
            self._careful, self._most = dict(zip(topics, careful, strict=True)), most
        self._tallies.set_clock(now)

    def served(self, connection: psycopg.Connection[Any], *, strict: bool = False) -> list[Served]:
        """Return the topics to be served.

        strict: raise TargetRefused for a topic that does not fit what was given at the start. Later on its
        target may be changed: what can apply it then does.
        """
        named = [*self._only, *(self._applier.topics if self._applier else [])]
        rows = calls.appliers.list_topics(self._schema, named).on(connection)
        there = {row.name: Served(*row) for row in rows}
        self._posted = frozenset(row.name for row in rows if is_posted(row.target))
        for topic in named:
            if topic not in there:
                name = ("-- " if topic.startswith("-") else "") + quote(topic)
                raise UnknownTopic(
                    f"topic {topic!r} does not exist",
                    hint=advised(f"Create it first: inturn topic create {name}", self._schema),
                    topic=topic,
                )
        served = self._only or sorted(there)
        if strict:
            for topic in served:
                refuse_misfit(there[topic], self._parts(topic), named=bool(self._only))
        return [there[topic] for topic in served]

    def _parts(self, topic: str, applier_id: str = "", hand: Hand | None = None) -> Parts:
        return Parts(
            self._schema,
            self._applier,
            self._stop,
            self._http_timeouts,
            applier_id,
            self._breaker(topic),
            hand or Hand(),
            self._posted,
        )

    def _breaker(self, topic: str) -> Breaker:
        """Return the topic's breaker, which the workers share."""
        return self._breakers.setdefault(topic, Breaker(topic))

    def outside_targets(self, rows: list[Served], *, strict: bool = False) -> list[OutsideTarget]:
        """Return what applies those of the topics that are applied outside the database.

        strict: raise TargetRefused for one that cannot be. Later on it is left out, and that is said once.
        """
        targets = []
        for row in rows:
            topic = row.topic
            try:
                effect = kind_of(row).outside(row, self._parts(topic))
            except TargetRefused as error:
                if strict and (self._only or not isinstance(error, MissingPart)):
                    raise
                if topic not in self._refused:
                    log.warning("not served: %s", error, extra={"topic": topic})
                self._refused.add(topic)
                continue
            self._refused.discard(topic)
            if effect is not None:
                targets.append(OutsideTarget(topic, row.limit, effect, row.target, row.timeout, row.merges))
        return targets
