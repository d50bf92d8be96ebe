"""The situations of docs/explanation/key-states.md, each made by hand.

The beginning of a situation's name is the key's state. The last step is left to be committed. See key_events.
"""

from __future__ import annotations

from support.key_events import Deed, gap_times_out, lease_runs_out, wait_runs_out
from support.key_hands import Key

# A command is applied, and two are pending unless the name says otherwise.


def idle(key: Key) -> None:
    key.append(again=None if key.given else "first")
    key.claim()
    key.finish()
    key.hands.commit()


def ready(key: Key) -> None:
    idle(key)
    key.append()
    key.append()


def ready_nothing_pending(key: Key) -> None:
    idle(key)
    key.append()
    key.claim()
    key.fail("skip")


def ready_lease_over(key: Key) -> None:
    leased(key)
    key.hands.commit()
    lease_runs_out(key)


def retrying(key: Key) -> None:
    ready(key)
    key.claim()
    key.fail()
    key.hands.commit()
    wait_runs_out(key)


def retrying_not_due(key: Key) -> None:
    ready(key)
    key.set("backoff_base = '1 hour', backoff_cap = '1 hour'")
    key.claim()
    key.fail()


def leased(key: Key) -> None:
    ready(key)
    key.lease()


def leased_all_recorded(key: Key) -> None:
    leased(key)
    key.advance()
    key.advance()


def waiting(key: Key) -> None:
    idle(key)
    key.append(3)
    key.append(4)


def held(key: Key) -> None:
    ready(key)
    key.claim()
    key.fail("hold")


def held_at_a_gap(key: Key) -> None:
    waiting(key)
    key.hands.commit()
    gap_times_out(key)


def _paused(situation: Deed) -> Deed:
    def make(key: Key) -> None:
        situation(key)
        key.call("pause")

    return make


SITUATIONS: dict[str, Deed] = {
    "held": held,
    "held: at a gap": held_at_a_gap,
    "paused": _paused(ready),
    "paused: nothing pending": _paused(idle),
    "paused: retrying": _paused(retrying),
    "paused: leased": _paused(leased),
    "paused: waiting": _paused(waiting),
    "leased": leased,
    "leased: all recorded": leased_all_recorded,
    "waiting": waiting,
    "idle": idle,
    "retrying": retrying,
    "retrying: not due": retrying_not_due,
    "ready": ready,
    "ready: nothing pending": ready_nothing_pending,
    "ready: lease over": ready_lease_over,
}
#: Only where callers number.
GAPS = {"held: at a gap", "paused: waiting", "waiting"}
