"""Effect: what a command of a leased key does outside the database, and how that can end."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar, cast

from inturn.applier.breaker import is_outage
from inturn.applier.command import ClaimedCommand, Command, handling
from inturn.applier.failure import describe
from inturn.applier.handlers import (
    Applier,
    HandlerDidNotRun,
    NoHandler,
    OutsideHandler,
    is_coroutine_function,
    refuse_unrun,
)
from inturn.applier.outside.leases import Lease
from inturn.applier.registration import is_async
from inturn.applier.verdict import NOTHING, Requested, asked

_T = TypeVar("_T")
_Start: TypeAlias = Callable[[Command], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Failed:
    """A command that did not take effect, or may not have.

    Attributes:
        error: for people, storable.
        asked: what becomes of it, if that was said.
        outage: the service as a whole seems to be down; it did not refuse this command.
        unhandled: no handler takes it; one of another process may.
    """

    error: str
    asked: Requested = NOTHING
    outage: bool = False
    unhandled: bool = False


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a post to a service may take, in seconds.

    Attributes:
        connect: to resolve the name, connect, and shake hands for TLS.
        read: from one byte to the next, of the request or of the answer.
        whole: in total.

    Raises:
        ValueError: one of them is not over 0.
    """

    connect: float = 5.0
    read: float = 30.0
    whole: float = 60.0

    def __post_init__(self) -> None:
        for name in ("connect", "read", "whole"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; a timeout is over 0 seconds")


class Effect(Protocol):
    """What applies the commands of a topic outside the database."""

    def stops_when_cut(self, order: ClaimedCommand) -> bool:
        """Return whether a cancelled `apply` has ended its work, as far as this process goes."""
        ...

    async def apply(self, order: ClaimedCommand, lease: Lease) -> Failed | None:
        """Do a command; return None when it took effect. Raises only CancelledError and LeaseOver."""
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
    """Calls Python handlers: a plain function in a thread of its own, an `async def` on the loop."""

    applier: Applier

    def stops_when_cut(self, order: ClaimedCommand) -> bool:
        # A thread cannot be ended: its key stays leased until the lease runs out.
        try:
            return is_coroutine_function(self.applier.find_outside(order))
        except NoHandler:
            return True

    async def apply(self, order: ClaimedCommand, lease: Lease) -> Failed | None:  # noqa: ARG002 - see Effect
        try:
            command = order.read(self.applier.parse_float)
            handler = self.applier.find_outside(command)
        except Exception as error:  # noqa: BLE001 - of this command's data, so it fails this command
            return _failed(error)
        if is_coroutine_function(handler):
            with handling(command):
                return await _run(functools.partial(cast(_Start, handler), command))
        try:
            returned = await in_thread(lambda: _call(handler, command))
        except NoThread as error:
            return _failed(error)
        if isinstance(returned, Awaitable) and is_async(handler):
            # A decorator made a coroutine; it has been called in the thread, as any plain function.
            with handling(command):
                return await _run(lambda: returned)
        return returned if isinstance(returned, Failed) else _unrun(returned)

    async def tidy(self) -> None: ...

    async def close(self) -> None: ...


def _call(handler: OutsideHandler, command: Command) -> object:
    """Call a handler; return what it returns, or Failed."""
    try:
        with handling(command):
            return handler(command)
    except BaseException as error:  # noqa: BLE001 - whatever a handler raises fails its command
        return _failed(error)


async def _run(start: Callable[[], Awaitable[object]]) -> Failed | None:
    """Await a handler. Raises CancelledError when this is cut off, and not when the handler raises it."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - for mypy: this is one
    cuts = task.cancelling()
    try:
        refuse_unrun(await start())
    except BaseException as error:
        if isinstance(error, GeneratorExit) and not _loop_runs():
            raise  # the loop has ended without this task
        if task.cancelling() > cuts:
            # Whatever it made of the cancel: how far it came is unknown, and nobody is blamed.
            raise asyncio.CancelledError from error
        return _failed(error)
    return None


def _unrun(returned: object) -> Failed | None:
    try:
        refuse_unrun(returned)
    except HandlerDidNotRun as error:
        return _failed(error)
    return None


def _failed(error: BaseException) -> Failed:
    asks = asked(error)
    outage = asks.sqlstate is None and is_outage(error)
    return Failed(describe(error), asks, outage=outage, unhandled=isinstance(error, NoHandler))


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class NoThread(OSError):
    """The system has no thread left. For a command that is an outage: it was not even begun."""


async def in_thread(function: Callable[[], _T]) -> _T:
    """Run a function in a daemon thread of its own: if it never returns, it stops nobody else.

    When this is cancelled the thread goes on; what it returns is dropped.

    Raises:
        NoThread: it could not be started.
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

    try:
        threading.Thread(target=run, name="inturn-outside", daemon=True).start()
    except RuntimeError as error:
        raise NoThread(f"a thread could not be started: {error}") from error
    return await future
