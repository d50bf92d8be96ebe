"""Applier: which handler applies which command of which topic."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeAlias, TypeVar, cast, overload

import psycopg

from inturn.applier.command import ClaimedCommand, Command
from inturn.applier.registration import check_function, check_text
from inturn.schema.errors import InturnError

#: Gets the connection of the transaction and the command; what it returns is ignored.
Handler: TypeAlias = Callable[[psycopg.Connection[Any], Command], object]
#: Gets commands of one key, in order; returns how many of them took effect, the first ones, or None: all.
BatchHandler: TypeAlias = Callable[[psycopg.Connection[Any], list[Command]], int | None]
#: A plain function is called in a thread of its own; an `async def` is awaited on the worker's loop.
OutsideHandler: TypeAlias = Callable[[Command], object] | Callable[[Command], Awaitable[object]]
_H = TypeVar("_H", bound=Handler)
_B = TypeVar("_B", bound=BatchHandler)
_O = TypeVar("_O", bound=OutsideHandler)


class NoHandler(InturnError):
    """A command has a name that no handler of its topic takes."""


class HandlerDidNotRun(InturnError):
    """A handler returned something that still has to be awaited or iterated: its body did not run."""


class AnswerRefused(InturnError):
    """A batch handler returned neither None nor how many of its commands took effect."""


class Applier:
    """The handlers of an application, registered per topic and command name.

    A handler gets two arguments: the connection of the transaction that also commits the key's progress, and
    the command. It must neither commit nor roll back. If it raises, the command fails.

    A handler with outside=True gets only the command. No transaction is open while it runs: a lease keeps
    the key. It may be called again for a command that took effect before. A plain function runs in a thread
    of its own, an `async def` on an event loop that all of them share.

    A batch handler gets several commands of one key at a time, whatever their names: see batch_handler.

    Args:
        parse_float: is called with each number of a payload that has a fraction, as by json.loads, and
            returns what the handler gets. None: floats, which round; decimal.Decimal keeps every digit. If it
            raises, the command fails.
    """

    def __init__(self, *, parse_float: Callable[[str], Any] | None = None) -> None:
        self.parse_float = parse_float
        self._handlers: dict[str, dict[str | None, Handler | OutsideHandler]] = {}
        self._batch: dict[str, BatchHandler] = {}
        self._outside: set[str] = set()

    @overload
    def handler(
        self, topic: str, name: str | None = None, *, outside: Literal[False] = False
    ) -> Callable[[_H], _H]: ...

    @overload
    def handler(
        self, topic: str, name: str | None = None, *, outside: Literal[True]
    ) -> Callable[[_O], _O]: ...

    def handler(
        self, topic: str, name: str | None = None, *, outside: bool = False
    ) -> Callable[[_H], _H] | Callable[[_O], _O]:
        """Return a decorator that registers a handler.

        Args:
            topic: the topic whose commands it applies.
            name: the name of the commands that it applies; None: all that have no handler of their own.
            outside: whether it works outside the database, by lease, and gets only the command.

        Raises:
            ValueError: there is a handler already for this topic and name, or the topic has handlers of the
                other kind.
            TypeError: the topic or the name is not a text, as where the parentheses of the decorator are
                missing. From the decorator: the function does not take the arguments that it will get; or it
                is a generator function, or without outside=True an `async def`, so that a call would not run
                its body.
        """
        check_text("topic", topic)
        if name is not None:
            check_text("name", name)

        def register(function: Any) -> Any:
            check_function(function, ["command"] if outside else ["connection", "command"])
            if topic in self._batch:
                raise ValueError(f"topic {topic!r} has a batch handler, which takes all of its commands")
            handlers = self._handlers.setdefault(topic, {})
            if name in handlers:
                what = "a default handler" if name is None else f"a handler for {name!r}"
                raise ValueError(f"topic {topic!r} has {what} already")
            if handlers and outside != (topic in self._outside):
                raise ValueError(f"topic {topic!r} has handlers already of which outside is {not outside}")
            if outside:
                self._outside.add(topic)
            handlers[name] = function
            return function

        return register

    def batch_handler(self, topic: str, *, outside: Literal[False] = False) -> Callable[[_B], _B]:
        """Return a decorator that registers the batch handler of a topic, which takes all of its commands.

        The handler gets the transaction's connection and a list of the next commands of one key, in order, at
        most the topic's batch_commands. It returns None when all of them took effect; otherwise how many did,
        counted from the first, at least 1. If it raises, everything that it did is undone, and it gets the
        commands again in smaller batches, until the one that cannot take effect is found. Only that one is
        counted as failed.

        Args:
            topic: the topic whose commands it applies.
            outside: must be False: outside the database each command is recorded by itself.

        Raises:
            ValueError: the topic has a handler already.
            TypeError: outside is True, or the topic is not a text, as where the parentheses of the decorator
                are missing. From the decorator: the function does not take a connection and a list, or is an
                `async def` or a generator function.
        """
        check_text("topic", topic)
        if outside:
            raise TypeError(
                "a batch handler works in the transaction; outside the database each command is recorded "
                "for itself: use handler(topic, outside=True)"
            )

        def register(function: _B) -> _B:
            check_function(function, ["connection", "commands"])
            if topic in self._batch:
                raise ValueError(f"topic {topic!r} has a batch handler already")
            if self._handlers.get(topic):
                raise ValueError(f"topic {topic!r} has handlers for single commands already")
            self._batch[topic] = function
            return function

        return register

    @property
    def topics(self) -> list[str]:
        """The topics that have a handler."""
        return sorted({*self._handlers, *self._batch})

    def is_outside(self, topic: str) -> bool:
        """Return whether the topic's handlers work outside the database."""
        return topic in self._outside

    def find(self, command: Command) -> Handler:
        """Return the handler of a command that works in the transaction.

        Raises:
            NoHandler: there is none, and no default one.
        """
        return cast(Handler, self._find(command))

    def find_batch(self, topic: str) -> BatchHandler | None:
        """Return the topic's batch handler; None: its commands are taken one by one."""
        return self._batch.get(topic)

    def find_outside(self, command: Command | ClaimedCommand) -> OutsideHandler:
        """Return the handler of a command that works outside.

        Raises:
            NoHandler: there is none, and no default one.
        """
        return cast(OutsideHandler, self._find(command))

    def _find(self, command: Command | ClaimedCommand) -> Handler | OutsideHandler:
        handlers = self._handlers.get(command.topic, {})
        found = handlers.get(command.name, handlers.get(None))
        if found is None:
            names = ", ".join(sorted(repr(name) for name in handlers if name is not None)) or "none"
            raise NoHandler(
                f"no handler for command {command.name!r} of topic {command.topic!r}",
                hint=f"Handlers there: {names}",
                topic=command.topic,
                key=command.key,
                seq=command.seq,
            )
        return found


def is_coroutine_function(handler: object) -> bool:
    """Return whether a call of this handler makes a coroutine and does nothing else."""
    call = handler if inspect.isroutine(handler) else getattr(type(handler), "__call__", None)  # noqa: B004 - the method
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)


def refuse_unrun(result: object) -> None:
    """Refuse what a handler returned if its body has not run yet.

    A coroutine is closed, so that nothing warns about it later.

    Raises:
        HandlerDidNotRun: it returned an awaitable, a generator or an async generator.
    """
    if inspect.isgenerator(result):
        what, hint = "a generator", "Iterate it in the handler"
    elif inspect.isasyncgen(result):
        what, hint = "an async generator", "Iterate it in the handler, in an `async def` with outside=True"
    elif inspect.isawaitable(result):
        what, hint = "an awaitable", "Write a plain function, or an `async def` with outside=True"
    else:
        return
    if inspect.iscoroutine(result) and inspect.getcoroutinestate(result) == inspect.CORO_CREATED:
        result.close()
    raise HandlerDidNotRun(f"the handler returned {what} and its body did not run", hint=hint)


def count_done(result: object, commands: int) -> int:
    """Return how many of its commands a batch handler says took effect.

    Raises:
        AnswerRefused: it returned neither None nor a number from 1 to as many as there were.
    """
    if result is None:
        return commands
    if type(result) is int and 1 <= result <= commands:
        return result
    shown = repr(result) if isinstance(result, int) else f"an object of type {type(result).__name__}"
    raise AnswerRefused(
        f"the batch handler returned {shown} for {commands} commands",
        hint="Return how many of them took effect, from 1 on, or None: all. Raise when the first one cannot",
    )
