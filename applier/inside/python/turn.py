"""Turn: a claimed key on its way through its handlers, and the ways in which that can go wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from inturn.applier.command import ClaimedCommand
from inturn.applier.inside.batch import Handled
from inturn.applier.verdict import NOTHING, Requested
from inturn.schema.errors import InturnError


class HandlerBrokeTransaction(InturnError):
    """A handler left the transaction in a state in which nothing more can be done."""


class CommandFailed(Exception):
    """A command's handler raised its cause."""

    def __init__(self, index: int, order: ClaimedCommand) -> None:
        super().__init__(index, order)
        self.index = index
        self.order = order


class Lost(Exception):
    """An applier was lost with one of the keys that were claimed: it has to be taken alone.

    ready_at: when that became ready.
    """

    def __init__(self, keys: int, ready_at: datetime) -> None:
        super().__init__(keys, ready_at)
        self.keys = keys
        self.ready_at = ready_at


class Redo(Exception):
    """Several turns are not to share a transaction: one of them failed, or may take long to fail again."""

    def __init__(self, keys: int) -> None:
        super().__init__(keys)
        self.keys = keys


@dataclass(slots=True)
class Turn:
    """One claimed key: what it has to apply, and how far that got."""

    key: str
    applied_seq: int
    epoch: int
    attempt: int
    ready_at: datetime
    orders: list[ClaimedCommand] = field(default_factory=list)
    done_seq: int = 0
    failed: ClaimedCommand | None = None
    error: str = ""
    asked: Requested = NOTHING
    #: When the latest call was begun, by time.monotonic(), and how long the one took that failed.
    begun_at: float = 0.0
    took: float | None = None
    outcome: str = "applied"
    skipped: int = 0
    is_alone: bool = False
    #: It was not begun, so that it does not hold up the other turns of its transaction.
    left: bool = False
    #: The last call of each command's handler, by the command's number.
    handled: dict[int, Handled] = field(default_factory=dict)
    #: Up to where commands after the last of `orders` were merged into nothing.
    gone_seq: int | None = None

    def take(self, order: ClaimedCommand) -> None:
        """Take up a command."""
        self.gone_seq = None
        self.orders.append(order)

    @property
    def reached(self) -> int:
        """Up to which number all is done."""
        last = self.orders[-1].seq if self.orders else self.applied_seq
        whole = self.gone_seq is not None and self.failed is None and self.done_seq == last
        return self.gone_seq if whole and self.gone_seq is not None else self.done_seq

    @property
    def untouched(self) -> bool:
        """Whether none of its commands was begun: nothing is recorded, and the key stays ready as it was."""
        return bool(self.orders) and self.failed is None and self.done_seq == self.applied_seq
