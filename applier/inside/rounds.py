"""Rounds: a worker's loop over its topics: applies whatever is ready, otherwise sleeps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from inturn.applier import calls, pacing
from inturn.applier.breaker import TargetDown
from inturn.applier.inside.batch import Target
from inturn.applier.inside.passes import Passes
from inturn.applier.inside.session import session_of
from inturn.applier.inside.sleep import Sleep
from inturn.applier.inside.visits import Visit, Visits
from inturn.applier.process.suspects import SuspectLooks
from inturn.applier.stop import Bell, Stop
from inturn.schema.errors import InturnError, OwnerChanged, TargetRefused

log = logging.getLogger("inturn.applier")


class Rounds:
    """The rounds of one worker, on one connection after the other."""

    def __init__(
        self,
        choose: Callable[[psycopg.Connection[Any]], Sequence[Target]],
        passes: Passes,
        visits: Visits,
        sleep: Sleep,
        *,
        drain: bool,
        stop: Stop,
        bell: Bell,
        ended: Callable[[], bool],
    ) -> None:
        """Make them.

        Args:
            choose, drain, stop, bell: as for Worker.
            ended: whether the worker is to end.
        """
        self._choose = choose
        self._targets: dict[str, Target] = {}
        self._chosen_at = 0.0
        self._passes = passes
        self._visits = visits
        self._sleep = sleep
        self._drain = drain
        self._stop = stop
        self._bell = bell
        self._ended = ended
        # Topics that are left out because their target, or what merges their commands, changed hands.
        self._refused: dict[str, InturnError] = {}
        # Topics that had more ready keys than the last visit took.
        self._more: set[str] = set()
        self._suspects = SuspectLooks()

    def serve(self, connection: psycopg.Connection[Any]) -> None:
        """Apply what is ready and sleep, until the worker is to end; with drain until nothing is ready.

        Raises:
            psycopg.Error: the connection or the database failed, or the database refused.
            InturnError: the worker cannot go on, or not on this connection.
        """
        poll_seconds = pacing.FIRST_POLL_SECONDS
        self._chosen_at = -pacing.CHOOSE_SECONDS
        self._sleep.forget_announcement()
        rung: frozenset[str] = frozenset()
        while not self._ended():
            self._choose_when_due(connection)
            found = self._apply_ready(connection, rung)
            if rung:
                self._bell.looked(found=found)
            if found:
                rung, poll_seconds = frozenset(), pacing.FIRST_POLL_SECONDS
                continue
            if self._passes.prune(connection):
                rung = frozenset()
                continue
            if self._drain:
                if self._drains_on(connection):
                    continue
                return
            if not self._sleep.announced:
                self._sleep.announce(connection, list(self._targets))
                # Looks once more: a key that became ready before the announcement notified nobody.
                if self._apply_ready(connection):
                    rung, poll_seconds = frozenset(), pacing.FIRST_POLL_SECONDS
                    continue
            heard = self._bell.wait(min(poll_seconds, self._sleep.seconds))
            rung = heard or frozenset()
            # Whoever notifies in vain does not make it look more often afterwards.
            if not rung:
                poll_seconds = pacing.next_poll(poll_seconds) if heard is None else pacing.FIRST_POLL_SECONDS

    @property
    def careful_topics(self) -> list[str] | None:
        """For Entry.say_careful: of those that have ready keys; None: it has not looked yet."""
        return self._visits.careful_among(self._passes.ready) if self._targets else None

    @property
    def are_careful(self) -> bool:
        """Whether a key that may have cost an applier its connection may still be ready, in any topic."""
        drained = self._drain and not self._ended()
        return not drained and any(self._visits.is_careful(topic) for topic in self._targets)

    def _drains_on(self, connection: psycopg.Connection[Any]) -> bool:
        """Return whether a drain that found nothing is to look again; it has waited for that.

        Raises:
            OwnerChanged, TargetDown: it ends, and a topic was not drained.
        """
        if self._waits_for_suspect(connection):
            return True
        if self._visits.left_out:
            self._wait_for_probe()
            return True
        self._end_drain()
        return False

    def _waits_for_suspect(self, connection: psycopg.Connection[Any]) -> bool:
        """Wait for a key that was put off, as an applier was lost with it; return whether to look again."""
        served = self._targets.keys() - self._visits.left_out - self._refused.keys()
        if not served or self._suspects.began_at is None:
            return False
        look = self._passes.next_suspect(
            connection, sorted(served), self._suspects.since, self._suspects.began_at
        )
        seconds = self._suspects.seconds_to_claim(look)
        if seconds is not None:
            self._stop.wait(seconds)
        return seconds is not None

    def _end_drain(self) -> None:
        """Raise OwnerChanged when a topic was left out, and has ready keys: nobody else has drained it."""
        for topic, refusal in self._refused.items():
            if topic in self._passes.ready:
                raise refusal

    def _choose_when_due(self, connection: psycopg.Connection[Any]) -> None:
        if self._drain and self._suspects.began_at is None:
            self._suspects.began_at = session_of(connection).call(calls.session.clock())
        if time.monotonic() - self._chosen_at > pacing.CHOOSE_SECONDS:
            self._targets = {target.topic: target for target in self._choose(connection)}
            self._passes.serve(connection, list(self._targets))
            self._bell.serve(self._targets)
            self._chosen_at = time.monotonic()

    def _apply_ready(self, connection: psycopg.Connection[Any], rung: frozenset[str] = frozenset()) -> bool:
        """Apply what is ready; return whether there may be more.

        rung: the topics that the bell rang for. When nothing is left in them, a worker that has announced its
        sleep goes on with it: of any other topic it would have been notified.
        """
        if rung and self._sleep.announced and not self._passes.needed(rung):
            visits = [self._visit(connection, topic) for topic in rung if topic in self._targets]
            if all(visit.emptied for visit in visits):
                self._sleep.end_when_ready(connection, list(rung), self._passes.looked_at)
                return False
        found = self._passes.begin(connection)
        self._visits.left_out.clear()
        self._sleep.end_never()
        self._sleep.end_within(self._passes.due)
        visits = [self._visit(connection, topic) for topic in found]
        if any(visit.found for visit in visits):
            return True
        if found:
            # Somebody else has them in hand, or they are paused; others of their keys may be due soon.
            self._sleep.end_when_ready(connection, found, self._passes.looked_at)
        return False

    def _visit(self, connection: psycopg.Connection[Any], topic: str) -> Visit:
        since = hand = self._passes.hand(topic)
        try:
            # The key that an applier died of is among the oldest.
            if topic in self._more and not self._visits.is_careful(topic):
                hand = self._passes.hand_among_many(connection, topic, self._visits.width(topic))
            visit = self._visits.visit(connection, self._targets[topic], hand)
        except OwnerChanged as refusal:
            return self._leave_out(topic, refusal)
        except TargetRefused:
            # Its target is no SQL function any more: ask again what it is.
            self._chosen_at = -pacing.CHOOSE_SECONDS
            return Visit(found=True, emptied=False)
        self._refused.pop(topic, None)
        (self._more.discard if visit.emptied else self._more.add)(topic)
        if visit.emptied and hand != since:
            # Nothing is left from there on: the next visit looks at what is before.
            return Visit(found=True, emptied=False)
        return visit

    def _leave_out(self, topic: str, refusal: OwnerChanged) -> Visit:
        """Leave a topic out whose target is refused: nothing was claimed. It is asked again each pass."""
        if topic not in self._refused:
            log.warning("left out: %s", refusal, extra={"topic": topic})
        self._refused[topic] = refusal
        return Visit(found=False, emptied=False)

    def _wait_for_probe(self) -> None:
        """Wait until a topic whose commands fail, whatever the key, may be tried again.

        Raises:
            TargetDown: one was already since then, and failed.
        """
        for topic in self._visits.left_out:
            if self._targets[topic].breaker.probed:
                raise TargetDown(
                    f"topic {topic!r} was not drained: its commands fail, whatever the key",
                    hint="Its keys stay as they are; see inturn keys --retrying",
                    topic=topic,
                )
        waits = [
            self._targets[topic].breaker.seconds_to_probe() or pacing.FIRST_POLL_SECONDS
            for topic in self._visits.left_out
        ]
        self._stop.wait(min(waits))
