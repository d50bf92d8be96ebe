"""Turn: a claimed key on its way through its handlers, and the ways in which that can go wrong."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime

from inturn.applier.verdict import NOTHING, Asked
from inturn.schema.errors import InturnError

log = logging.getLogger("inturn.applier")


class HandlerBrokeTransaction(InturnError):
    """A handler left the transaction in a state in which nothing more can be done."""


@dataclass(frozen=True, slots=True)
class Order:
    """A command as it was claimed: nothing of it was read yet that might fail.

    Attributes:
        payload: JSON as PostgreSQL writes it.
    """

    topic: str
    key: str
    seq: int
    name: str
    payload: str
    created_at: datetime
    attempt: int
    epoch: int


class CommandFailed(Exception):
    """A command's handler raised its cause."""

    def __init__(self, index: int, order: Order) -> None:
        super().__init__(index, order)
        self.index = index
        self.order = order


class Lost(Exception):
    """An applier was lost with one of the keys that were claimed: they have to be taken alone."""

    def __init__(self, keys: int) -> None:
        super().__init__(keys)
        self.keys = keys


class Redo(Exception):
    """One of several turns in the transaction failed."""


@dataclass(slots=True)
class Turn:
    """One claimed key: what it has to apply, and how far that got."""

    key: str
    applied_seq: int
    epoch: int
    attempt: int
    ready_at: datetime
    orders: list[Order] = field(default_factory=list)
    done_seq: int = 0
    failed: Order | None = None
    error: str = ""
    asked: Asked = NOTHING
    outcome: str = "applied"
    skipped: int = 0

    @property
    def untouched(self) -> bool:
        """Whether none of its commands was begun: nothing is recorded, and the key stays ready as it was."""
        return bool(self.orders) and self.failed is None and self.done_seq == self.applied_seq


def log_failure(turn: Turn, failed: Order) -> None:
    """Log the failure of a command, and what becomes of it."""
    what = {
        "skipped": "command failed for the last time and was skipped",
        "cancelled": "command failed for the last time and was skipped with all that was pending",
    }.get(turn.outcome, "command failed")
    level = logging.WARNING
    # What its handler asked for is no news to who wrote it; that a key stands still is.
    if turn.asked.skip:
        what, level = "command skipped by its handler", logging.INFO
    elif turn.outcome == "held" and turn.asked.hold:
        what = "key held by its handler"
    elif turn.outcome == "retrying" and turn.asked.sqlstate and not turn.asked.outage:
        what, level = "command put off by its handler", logging.INFO
    log.log(
        level,
        "%s: %s",
        what,
        turn.error.partition("\n")[0][:300],
        extra={
            "topic": failed.topic,
            "key": turn.key,
            "seq": failed.seq,
            "command": failed.name,
            "attempt": failed.attempt,
        },
    )
