"""Pacing: how long workers work, wait and look, as pure numbers."""

from __future__ import annotations

import random
import statistics
import time
from collections import deque
from collections.abc import Callable

#: A visit to a topic lasts, in seconds, ten times as long as its first batch took, within these bounds.
#: So a key whose caller committed late, behind the clock hand, waits no longer than that.
#: A batch that is taken apart prolongs it by the shortest one: the next visit would begin with it again, for
#: ever.
SHORTEST_VISIT_SECONDS, LONGEST_VISIT_SECONDS = 0.1, 1.0
#: As many keys share a transaction as their handlers take about this many seconds for, by what a key takes in
#: the quickest of the last batches: on a busy machine the others have waited for a processor.
BATCH_SECONDS = 0.010
#: What a key takes may have grown: with each batch, the quickest one counts for so many times as much.
#: Slowly, because on a busy machine few batches wait for nobody: with 2 instead of 1.1, 32 workers on 2 cores
#: had smaller batches and 0.8 of the rate. Faster after a batch of LONG_BATCH_SECONDS.
FORGETTING, FAST_FORGETTING = 1.1, 1.5
#: A machine is busy where a round trip of which the server makes nothing takes so many times as long as the
#: quickest one; the keys that share a transaction may take as many times longer as it exceeds that, up to
#: MOST_SLOWNESS: 32 workers on 2 cores had a commit a key otherwise, and half the rate.
USUAL_SLOWNESS, MOST_SLOWNESS = 3.0, 10.0
#: The quickest one is that of so many trips, or up to twice as many: the way to a server may become longer.
TRIPS = 1000
#: After a batch of at least LONG_BATCH_SECONDS a worker steps back for this part of it, at most for
#: LONGEST_STEP_BACK_SECONDS: an operator who waits for the key gets it before the worker claims it again.
LONG_BATCH_SECONDS, STEP_BACK, LONGEST_STEP_BACK_SECONDS = 0.1, 0.02, 0.02
#: An idle worker looks again after the first of these, then after ever longer, up to the second.
FIRST_POLL_SECONDS, LAST_POLL_SECONDS = 0.02, 1.0
#: How often a worker asks which topics there are, and announces itself.
CHOOSE_SECONDS = 5.0
#: For how many seconds after its announcement a sleeping worker counts on being notified; the announcement
#: stands for two.
ANNOUNCED_SECONDS = 1.0
#: A lost connection is made again after the first of these, then after ever longer, up to the second.
FIRST_RECONNECT_SECONDS, LAST_RECONNECT_SECONDS = 0.1, 2.0
#: A draining worker gives up after this many attempts in a row to connect again.
DRAIN_RECONNECTS = 5
#: How long a worker outside the database waits after that has refused.
REFUSED_SECONDS = 1.0
#: Anybody may NOTIFY. How many notifications in a row may find nothing before the process limits how many it
#: hears a second, and that limit; what it did not hear, it looks for with the next one.
VAIN_WAKES, VAIN_WAKES_A_SECOND = 10, 4.0
#: What is lost against another transaction runs again after this, then after twice as long, and so on.
FIRST_AGAIN_SECONDS = 0.01
NEVER = float("inf")


class Trips:
    """What the latest round trips of a connection took of which the server makes nothing."""

    def __init__(self) -> None:
        # The quickest of the last span of trips and of the one before, and how many the last one has.
        self._least, self._least_before, self._trips = NEVER, NEVER, 0
        self._latest: deque[float] = deque(maxlen=5)

    def add(self, seconds: float) -> None:
        """Count a trip that took that many seconds."""
        if self._trips == TRIPS:
            self._least, self._least_before, self._trips = NEVER, self._least, 0
        self._trips += 1
        self._least = min(self._least, max(seconds, 1e-6))
        self._latest.append(seconds)

    @property
    def slowness(self) -> float:
        """How many times as long as usual they take: from waiting for a processor, or the interpreter."""
        if not self._latest:
            return 1.0
        times = statistics.median(self._latest) / min(self._least, self._least_before) / USUAL_SLOWNESS
        return min(max(times, 1.0), MOST_SLOWNESS)


class Wakes:
    """A budget for notifications: a bucket of tokens; each notification that finds nothing spends one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left = float(VAIN_WAKES)
        self._counted_at = clock()

    @property
    def seconds(self) -> float:
        """For how long nothing is to be heard; 0 while there are tokens."""
        self._count()
        return max((1 - self._left) / VAIN_WAKES_A_SECOND, 0.0)

    def spend(self, *, found: bool) -> None:
        """Say what a wake has found: nothing costs a token, something fills the bucket."""
        self._count()
        self._left = float(VAIN_WAKES) if found else self._left - 1

    def _count(self) -> None:
        now = self._clock()
        earned = (now - self._counted_at) * VAIN_WAKES_A_SECOND
        self._left, self._counted_at = min(self._left + earned, float(VAIN_WAKES)), now


def next_poll(seconds: float) -> float:
    """Return how long to sleep after a sleep of that many seconds in which nothing was heard."""
    return min(seconds * 2, LAST_POLL_SECONDS)


def fitting_keys(seconds_per_key: float, most: int) -> int:
    """Return how many keys share a transaction when one takes that many seconds."""
    return int(min(max(BATCH_SECONDS / max(seconds_per_key, 1e-6), 1), most))


def seconds_per_key(before: float, now: float, batch_seconds: float, most: int) -> float:
    """Return how many seconds a key takes, by the quickest of the last batches.

    Args:
        before: what this returned after the batch before; NEVER: there was none.
        now: what a key took in this one.
        batch_seconds: how long this one took.
        most: how many keys share a transaction at most. That a key takes less than half of what fits them is
            not remembered: handlers that become slow would be noticed late.
    """
    grown = before * (FORGETTING if batch_seconds < LONG_BATCH_SECONDS else FAST_FORGETTING)
    return max(min(grown, now), BATCH_SECONDS / most / 2)


def visit_seconds(first_batch_seconds: float) -> float:
    """Return how long a visit lasts whose first batch took that many seconds."""
    return min(max(10 * first_batch_seconds, SHORTEST_VISIT_SECONDS), LONGEST_VISIT_SECONDS)


def step_back_seconds(batch_seconds: float) -> float:
    """Return how long to step back after a batch of that many seconds."""
    if batch_seconds < LONG_BATCH_SECONDS:
        return 0.0
    return min(STEP_BACK * batch_seconds, LONGEST_STEP_BACK_SECONDS)


def reconnect_seconds(failed_in_a_row: int) -> float:
    """Return how long to wait before connecting again; by chance, so that not all come at once."""
    # Of an outage of half an hour, the power itself would be more than a float holds.
    seconds: float = min(FIRST_RECONNECT_SECONDS * 2 ** min(failed_in_a_row, 30), LAST_RECONNECT_SECONDS)
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret


def again_seconds(times: int) -> float:
    """Return how long to wait before what was lost against another transaction runs again.

    By chance, so that the two do not meet again. times: how often it has run again before.
    """
    seconds: float = FIRST_AGAIN_SECONDS * 2**times
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
