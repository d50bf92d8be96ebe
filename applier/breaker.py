"""Breaker: keeps a service that does not answer from being asked by more than one key at a time."""

from __future__ import annotations

import logging
import random
import time

log = logging.getLogger("inturn.applier")

#: So many failures in a row, over all keys of a topic, open its breaker.
OPENING_FAILURES = 5
#: The pause before the first probe; doubled up to the second; of each, half to the whole.
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.5, 30.0


class Breaker:
    """Of one topic. Closed: as many keys at a time as its limit allows. Open: one, after a pause.

    Attributes:
        open: whether the service is taken to be down.
        probed: whether a probe has failed since it was opened.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._failures = 0
        self._pause = FIRST_PAUSE_SECONDS
        self._probe_at = 0.0
        self.open = False
        self.probed = False

    def room(self, in_flight: int, limit: int) -> int:
        """Return how many more keys may be taken up now."""
        if not self.open:
            return max(limit - in_flight, 0)
        return int(in_flight == 0 and time.monotonic() >= self._probe_at)

    def seconds_to_probe(self) -> float | None:
        """Return how long it pauses still; None while closed."""
        return max(self._probe_at - time.monotonic(), 0.0) if self.open else None

    def succeeded(self) -> None:
        """Learn that the service answered."""
        if self.open:
            log.info("answers again", extra={"topic": self._topic})
        self._failures = 0
        self.open = self.probed = False
        self._pause = FIRST_PAUSE_SECONDS

    def failed(self, *, probe: bool) -> bool:
        """Learn that it did not; return whether that counts as an attempt of the command.

        What was under way when the breaker opened does not: B was down, the command was not at fault.
        """
        if self.open and not probe:
            return False
        self._failures += 1
        if self._failures >= OPENING_FAILURES:
            if self.open:
                self.probed = True
                self._pause = min(self._pause * 2, LAST_PAUSE_SECONDS)
            pause = self._pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
            self._probe_at = time.monotonic() + pause
            if not self.open:
                log.warning(
                    "does not answer: probed with one key at a time until it does",
                    extra={"topic": self._topic},
                )
            self.open = True
        return True
