"""Effect: what a command of a leased key does outside the database, and how that can end."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from inturn.applier.command import Command
from inturn.applier.failure import describe
from inturn.applier.handlers import Applier
from inturn.applier.leases import Lease, Order
from inturn.applier.verdict import NOTHING, Asked, asked

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Failed:
    """A command that did not take effect, or may not have.

    Attributes:
        error: for people, storable.
        asked: what becomes of it, if that was said.
        outage: the service as a whole seems to be down, rather than to refuse this command.
    """

    error: str
    asked: Asked = NOTHING
    outage: bool = False


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a post may take, in seconds.

    Attributes:
        connect: to resolve the name, connect, and greet by TLS.
        read: without a byte, of the answer or for the request.
        whole: all in all.
    """

    connect: float = 5.0
    read: float = 30.0
    whole: float = 60.0


class Effect(Protocol):
    """What applies the commands of a topic outside the database."""

    @property
    def stops_when_cut(self) -> bool:
        """Whether a cancelled `apply` has ended its work, as far as this process goes."""
        ...

    async def apply(self, order: Order, lease: Lease) -> Failed | None:
        """Do a command; return None when it took effect. Raises nothing but CancelledError and LeaseOver."""
        ...

    async def tidy(self) -> None:
        """Let go of what was not used lately."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


class LeaseOver(Exception):
    """The lease ran out before the command was begun."""


@dataclass(frozen=True, slots=True)
class HandlerEffect:
    """Calls Python handlers, each in a thread of its own."""

    applier: Applier

    #: A thread cannot be ended: its key stays leased until the lease runs out.
    stops_when_cut = False

    async def apply(self, order: Order, lease: Lease) -> Failed | None:  # noqa: ARG002 - see Effect
        command = Command(
            order.topic,
            order.key,
            order.seq,
            order.name,
            json.loads(order.payload),
            order.created_at,
            order.attempt,
            order.epoch,
        )
        return await in_thread(lambda: self._call(command))

    def _call(self, command: Command) -> Failed | None:
        try:
            self.applier.find_outside(command)(command)
        except BaseException as error:  # noqa: BLE001 - whatever a handler raises fails its command
            asks = asked(error)
            # An error that nobody has judged may be the world's.
            return Failed(describe(error), asks, outage=asks.sqlstate is None)
        return None

    async def tidy(self) -> None: ...

    async def close(self) -> None: ...


async def in_thread(function: Callable[[], _T]) -> _T:
    """Run a function in a daemon thread of its own: if it never returns, that keeps nobody else.

    When this is cancelled the thread goes on; what it returns is dropped.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # a _T: nothing was raised

    def run() -> None:
        result, raised = None, None
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            raised = error
        try:
            loop.call_soon_threadsafe(settle, result, raised)
        except RuntimeError:
            return  # the loop has ended without it

    threading.Thread(target=run, name="inturn-outside", daemon=True).start()
    return await future
