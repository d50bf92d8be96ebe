"""FailureLog: logs failures; equal ones are counted instead of repeated."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

log = logging.getLogger("inturn.applier")

#: So many equal failures are logged one by one; from then on they are counted, and said every so often.
MOST_EQUAL = 10
SAY_SECONDS = 10.0
#: Of more kinds at a time, the others count as one kind of their topic.
MOST_KINDS = 200
_LINE_CHARACTERS = 300


@dataclass(slots=True)
class _Equal:
    """Failures that are equal. times: all of them; withheld: those that were not said yet."""

    began_at: float
    times: int = 0
    withheld: int = 0
    level: int = logging.NOTSET
    line: str = ""


class FailureLog:
    """The log of one process. Threads may share it.

    Failures are equal when their topic, what became of them and the first line of their error are. After a
    time without a further one they are new again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str, str], _Equal] = {}

    def log(self, level: int, what: str, error: str, extra: Mapping[str, object]) -> None:
        """Log a failure on one line, or count it.

        Args:
            what: what became of it.
            error: its first line is said.
            extra: its place; the topic is part of it.
        """
        line = error.partition("\n")[0][:_LINE_CHARACTERS]
        with self._lock:
            topic = str(extra["topic"])
            place = (topic, what, line)
            if place not in self._seen and len(self._seen) >= MOST_KINDS:
                place = (topic, what, "")
            equal = self._seen.setdefault(place, _Equal(time.monotonic()))
            equal.times += 1
            if equal.times > MOST_EQUAL:
                equal.withheld += 1
                equal.level, equal.line = max(equal.level, level), line
                return
        log.log(level, "%s: %s", what, line, extra=extra)

    def say(self, *, everything: bool = False) -> None:
        """Say how many were counted, of those for which it is time.

        everything: of all, and forget them: nothing more comes.
        """
        now = time.monotonic()
        with self._lock:
            due = [
                (place, equal)
                for place, equal in self._seen.items()
                if everything or now >= equal.began_at + SAY_SECONDS
            ]
            said = [(place, equal.withheld, equal.level, equal.line) for place, equal in due]
            for place, equal in due:
                if everything or not equal.withheld:
                    del self._seen[place]
                equal.began_at, equal.withheld, equal.level = now, 0, logging.NOTSET
        for (topic, what, kind), withheld, level, line in said:
            if withheld:
                errors = "with the same error" if kind else "with other errors, the last one"
                log.log(level, "%d more: %s, %s: %s", withheld, what, errors, line, extra={"topic": topic})


#: That of this process.
FAILURES = FailureLog()
