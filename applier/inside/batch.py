"""Batch: what one transaction of turns did, and what makes one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import psycopg

from inturn.applier.breaker import Breaker
from inturn.applier.command import ClaimedCommand

#: The clock hand before the first claim: start from the oldest ready key.
OLDEST = "-infinity"


class Handled(NamedTuple):
    """A command's call of its handler: when it began, and how long it took.

    began_at: by this machine's clock (time.time()). seconds: its share, where one call took several commands.
    """

    order: ClaimedCommand
    began_at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction of turns did.

    Attributes:
        keys: how many keys were claimed; 0: none was ready.
        commands: how many commands were applied.
        failures: how many failed, each the end of its key's turn; a skip that a handler asked for is not a
            failure.
        redo: nothing was changed; the keys have to be claimed again one at a time.
        hand: when the last claimed key had become ready: where the next claim starts.
        skipped: how many commands were skipped.
        target_seconds: how long the handlers or the SQL target were at work.
        lost: as redo: an applier was lost with one of them, which apply_alone has to take, from `hand` on.
        empty: how many turns found nothing to apply.
        handled: the calls of handlers; None where the database made them.
        left: how many more keys were claimed and left as they were, each for a transaction of its own; `hand`
            is where the first of them is.
        slowness: how many times as long as usual everything takes, so that much of target_seconds is waiting.
    """

    keys: int = 0
    commands: int = 0
    failures: int = 0
    redo: bool = False
    hand: datetime | str = OLDEST
    skipped: int = 0
    target_seconds: float = 0.0
    lost: bool = False
    empty: int = 0
    handled: Collection[Handled] | None = None
    left: int = 0
    slowness: float = 1.0

    @property
    def seconds_per_key(self) -> float:
        """How many seconds a key takes, without the waiting; there is one at least."""
        return self.target_seconds / self.slowness / self.keys

    @property
    def is_untouched(self) -> bool:
        """Whether none of the keys that were claimed was begun, as the time for that was over."""
        done = self.commands or self.failures or self.skipped or self.empty or self.left
        return self.keys > 0 and not self.redo and not done


class Target(Protocol):
    """What applies the commands of a topic: makes one batch on a connection in autocommit."""

    @property
    def topic(self) -> str: ...

    @property
    def schema(self) -> str: ...

    @property
    def breaker(self) -> Breaker: ...

    def apply_batch(
        self, connection: psycopg.Connection[Any], since: datetime | str, max_keys: int
    ) -> Batch: ...

    def apply_alone(self, connection: psycopg.Connection[Any], since: datetime | str) -> Batch: ...
