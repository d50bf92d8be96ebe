"""What service A of the demo calls: every command of every order, and how long each takes, by the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

#: The longest times, in seconds: on the way to B, and at B. An insert has more to look up.
WAY_SECONDS = 0.010
WORK_SECONDS = {"insert": 0.030, "delete": 0.010}
#: So many per cent of the commands are about one order, where one is hot.
HOT_PERCENT = 60


@dataclass(frozen=True, slots=True)
class Call:
    """One command that A gives B.

    Attributes:
        key: the order.
        seq: which of the order's commands it is, from 1; A gave the one before first.
        name: insert or delete.
        work: how long B takes over it, in seconds.
    """

    key: str
    seq: int
    name: str
    work: float


Orders = Sequence[Sequence[Call]]


def plan(orders: int, seed: int) -> Orders:
    """Return the calls about each order: it is inserted and deleted, every second one inserted again."""
    return [_order(number, 3 if number % 2 == 0 else 2, seed) for number in range(1, orders + 1)]


def plan_hot(orders: int, seed: int) -> Orders:
    """Return as many calls, most of them about order 1, which is inserted and deleted over and over."""
    total = sum(map(len, plan(orders, seed)))
    hot = max(2, total * HOT_PERCENT // 100)
    planned = [_order(1, hot, seed)]
    for order in plan(orders, seed)[1:]:
        if hot + len(order) > total:
            break
        hot += len(order)
        planned.append(order)
    return planned


def seconds_on_the_way(key: str, seq: int, seed: int) -> float:
    """Return how long a call is under way before it reaches a machine of B."""
    return _random(key, seq, seed, "way").uniform(0, WAY_SECONDS)


def _order(number: int, calls: int, seed: int) -> Sequence[Call]:
    key = f"order-{number}"
    planned = []
    for seq in range(1, calls + 1):
        name = "insert" if seq % 2 else "delete"
        work = _random(key, seq, seed, "work").uniform(0, WORK_SECONDS[name])
        planned.append(Call(key, seq, name, round(work, 6)))
    return planned


def _random(key: str, seq: int, seed: int, what: str) -> random.Random:
    return random.Random(f"{seed}:{key}:{seq}:{what}")  # noqa: S311 - no secret
