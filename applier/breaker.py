"""Breaker: while a target does not answer, only one key at a time is tried."""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Iterable, Mapping

import psycopg

from inturn.applier.failure import encodable
from inturn.schema.errors import InturnError

log = logging.getLogger("inturn.applier")

#: How many outages of different keys in a row, with no success between them, open a topic's breaker.
OPENING_FAILURES = 5
#: The pause before the first probe; doubled up to the second; of each, half to the whole.
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.5, 30.0

#: How much of the last failure is announced.
_ERROR_CHARACTERS = 300

#: The same as in the SQL function _outage_of, which says what they are: SQLSTATEs of an outage; those of
#: extensions and languages that have none for it, and what their messages say then.
_DOWN, _FOREIGN = re.compile("08...|53[0-3]00|57P0.|580[03]0|HV00N"), re.compile("38000|XX000")
_SAID = re.compile(
    "(could ?n.t|failed to|unable to|cannot) (connect|resolve)|name resolution|service not known"
    "|connection ?(error|refused|reset|closed|aborted)|closed connection|disconnected|empty reply"
    "|timed ?out|timeout|unreachable|no route to host",
    re.IGNORECASE,
)

#: What libraries call the exceptions of a service that is not there.
_OUTAGE = re.compile("Connect|Timeout|TimedOut|Unavailable|Unreachable|Transport|Network|OperationalError")


def is_outage(error: BaseException) -> bool:
    """Return whether an error looks like an outage, rather than the command's fault.

    An outage is an OSError, from which most clients derive theirs, or an error whose class, or one of its
    base classes, has a name that network libraries use. An error that PostgreSQL gives for a statement is
    one where the SQL function _outage_of says so: it was about another server, or about what this one has
    no more of.
    """
    if isinstance(error, psycopg.Error):
        if error.sqlstate is None:
            return isinstance(error, psycopg.OperationalError)
        said = error.diag.message_primary or ""
        if _FOREIGN.fullmatch(error.sqlstate):
            return _SAID.search(said) is not None
        return _DOWN.fullmatch(error.sqlstate) is not None
    return isinstance(error, OSError) or any(_OUTAGE.search(kind.__name__) for kind in type(error).__mro__)


class TargetDown(InturnError):
    """A topic was not drained: what its commands need is down."""


class Breaker:
    """The breaker of one topic. Closed: its limit of keys at a time. Open: one key, after a pause.

    Threads may share one.

    Attributes:
        open: whether what its commands need is taken to be down.
        probed: whether a probe has failed since it was opened.
    """

    def __init__(self, topic: str = "") -> None:
        self._topic = topic
        self._lock = threading.Lock()
        self._failed: set[str] = set()
        self._pause = FIRST_PAUSE_SECONDS
        self._probe_at = 0.0
        self._prober: int | None = None
        self._opened_at = 0.0
        self._last: tuple[str, str] = ("", "")
        self.open = False
        self.probed = False

    def room(self, in_flight: int, limit: int) -> int:
        """Return how many more keys may be taken up now."""
        if not self.open:
            return max(limit - in_flight, 0)
        return int(in_flight == 0 and time.monotonic() >= self._probe_at)

    def seconds_to_probe(self) -> float | None:
        """Return for how many seconds it still pauses; None while it is closed."""
        return max(self._probe_at - time.monotonic(), 0.0) if self.open else None

    def begin_probe(self) -> bool:
        """Return whether this thread may take a key now, while it is open; then `end_probe` has to follow."""
        with self._lock:
            if self._prober is not None or time.monotonic() < self._probe_at:
                return False
            self._prober = threading.get_ident()
            return True

    def end_probe(self, thread: int | None = None) -> None:
        """End the probe of this thread, or of another one that was given up; nobody else's."""
        with self._lock:
            if self._prober == (threading.get_ident() if thread is None else thread):
                self._prober = None

    @property
    def is_probing(self) -> bool:
        """Whether this thread has the probe."""
        return self._prober == threading.get_ident()

    def succeeded(self) -> None:
        """Note that a command took effect, or failed for a reason of its own."""
        if not self.open and not self._failed:
            return
        with self._lock:
            was_open, self.open, self.probed = self.open, False, False
            self._failed.clear()
            self._pause = FIRST_PAUSE_SECONDS
        if was_open:
            log.info("answers again", extra={"topic": self._topic})

    def report(self) -> dict[str, object] | None:
        """Return what to announce: for how many seconds it has been open, and the last failure."""
        with self._lock:
            if not self.open:
                return None
            key, error = self._last
            return {"seconds": time.monotonic() - self._opened_at, "key": key, "error": error}

    def failed(self, key: str, error: str = "", *, probe: bool) -> bool:
        """Note that a command of a key failed; return whether that counts as an attempt.

        While it is open nothing does, and no probe either: the command is not at fault. A key that always
        fails so does not keep it open where there are others: the next probe is of one of them.
        """
        with self._lock:
            was_open = self.open
            if was_open and not probe:
                return False
            self._failed.add(key)
            self._last = key, error.partition("\n")[0][:_ERROR_CHARACTERS]
            if was_open:
                self.probed = True
                self._pause = min(self._pause * 2, LAST_PAUSE_SECONDS)
            elif (keys := len(self._failed)) < OPENING_FAILURES:
                return True
            else:
                self.open, self._opened_at = True, time.monotonic()
            pause = self._pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
            self._probe_at = time.monotonic() + pause
        if not was_open:
            log.warning(
                "target does not answer: %d keys in a row failed. One key at a time is tried from now on",
                keys,
                extra={"topic": self._topic},
            )
        return not was_open


def reports(
    breakers: Mapping[str, Breaker], topics: Iterable[str], info: psycopg.ConnectionInfo
) -> dict[str, object]:
    """Return what to announce about the topics whose breaker is open."""
    found = {topic: breakers[topic].report() for topic in topics if topic in breakers}
    return {
        topic: report | {"error": encodable(str(report["error"]), info)}
        for topic, report in found.items()
        if report is not None
    }
