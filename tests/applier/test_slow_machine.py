"""However slow everything is, each visit to a topic applies something: by a simulated clock, in no time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from inturn.applier import Batch
from inturn.applier.breaker import Breaker
from inturn.applier.inside import visits
from inturn.applier.inside.batch import OLDEST
from inturn.applier.inside.visits import Visits
from inturn.applier.metrics.tallies import Tallies
from inturn.applier.process.totals import Totals
from inturn.applier.stop import Bell

TOPIC, HEALTHY = "orders", 10
#: What a statement takes on this machine, and on slower ones, in seconds.
TRIPS = (0.001, 0.01, 0.05, 0.2, 2.0)
#: For how long a suspect is put off that its process cannot take now: see _claim_alone.
PUT_OFF = 0.05


class _Slow:
    """A topic on a slow machine: the statements of a turn take a trip each, and a batch two.

    Args:
        fails: fails with every other key in its transaction; it takes as long as twelve trips before.
        suspect: cannot be taken now, as its process has something else in hand.
    """

    topic, schema = TOPIC, "inturn"

    def __init__(self, trip: float, *, fails: str = "", suspect: str = "") -> None:
        self.now, self.trip, self.fails, self.suspect = 100.0, trip, fails, suspect
        self.breaker = Breaker(TOPIC)
        # Since when each key is ready: the healthy ones in the middle.
        self.ready = {f"k{n}": float(n) for n in range(HEALTHY)}
        self.ready |= {key: HEALTHY / 2 for key in (fails, suspect) if key}

    def monotonic(self) -> float:
        self.now += self.trip / 10  # where it stands still for a while, as anywhere
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds

    @property
    def healthy(self) -> int:
        return len(self.ready.keys() - {self.fails, self.suspect})

    def _claim(self, since: Any, most: int) -> list[str]:
        self.now += self.trip
        first = 0.0 if since == OLDEST else since
        due = sorted((at, key) for key, at in self.ready.items() if first <= at <= self.now)
        return [key for _, key in due[:most]]

    def _apply(self, keys: list[str]) -> Batch:
        self.now += self.trip
        hand: Any = max(self.ready.pop(key) for key in keys)
        return Batch(keys=len(keys), commands=len(keys), hand=hand, target_seconds=1e-6)

    def apply_batch(self, _connection: Any, since: Any, max_keys: int) -> Batch:
        if not (keys := self._claim(since, max_keys)):
            return Batch()
        if self.suspect in keys:
            hand: Any = self.ready[self.suspect]
            return Batch(keys=len(keys), redo=True, lost=True, hand=hand)
        if self.fails in keys:
            self.now += 12 * self.trip
            return Batch(keys=len(keys), redo=True) if len(keys) > 1 else self._apply(keys)
        return self._apply(keys)

    def apply_alone(self, _connection: Any, since: Any) -> Batch:
        if not (keys := self._claim(since, 1)):
            return Batch()
        if keys != [self.suspect]:
            return self._apply(keys)
        hand: Any = self.ready[self.suspect]
        self.ready[self.suspect] = self.now + PUT_OFF
        self.now += self.trip
        return Batch(keys=1, hand=hand)


@pytest.mark.parametrize("trip", TRIPS)
@pytest.mark.parametrize("trouble", [{"fails": "bad"}, {"suspect": "lost"}])
def test_each_visit_applies_something_however_slow_the_machine_is(
    trip: float, trouble: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A visit lasts a second at most, what is put off is back in 50 ms: both may be over before a batch."""
    slow = _Slow(trip, **trouble)
    monkeypatch.setattr(visits, "time", slow)
    monkeypatch.setattr(visits, "session_of", lambda _: SimpleNamespace(is_fit=lambda: True))
    one = Visits(
        max_keys=50,
        careful=lambda _: 0,
        stop=SimpleNamespace(requested=False, expired=False, wait=slow.wait),  # type: ignore[arg-type]
        bell=Bell(1),
        sleep=SimpleNamespace(),  # type: ignore[arg-type]
        totals=Totals(),
        tallies=Tallies(),
        found=lambda: None,
    )
    one._seconds_per_key[TOPIC] = 1e-6
    while slow.healthy:
        left = len(slow.ready)
        one.visit(None, slow, OLDEST)  # type: ignore[arg-type]
        assert len(slow.ready) < left
