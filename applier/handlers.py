"""Applier: which handler applies which command of which topic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, TypeVar, cast, overload

import psycopg

from inturn.applier.command import Command
from inturn.schema.errors import InturnError

Handler: TypeAlias = Callable[[psycopg.Connection[Any], Command], object]
OutsideHandler: TypeAlias = Callable[[Command], object]
_H = TypeVar("_H", bound=Handler)
_O = TypeVar("_O", bound=OutsideHandler)


class NoHandler(InturnError):
    """A command has a name that no handler of its topic takes."""


class Applier:
    """The handlers of an application, registered per topic and command name.

    A handler gets the transaction's connection, on which its effects commit together with the
    key's progress, and the command. It neither commits nor rolls back. What it raises fails the
    command.

    One registered with outside=True gets the command alone, and no transaction waits for it: its key is
    kept by a lease. It may be called again for a command that took effect, and runs in a thread of its
    own, beside others for other keys.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, dict[str | None, Handler | OutsideHandler]] = {}
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
            name: the command it applies; None: every command of the topic without its own handler.
            outside: it works outside the database: handler(command), by lease.

        Raises:
            ValueError: there is one already for this topic and name, or the topic has handlers of the
                other kind.
        """

        def register(function: Any) -> Any:
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

    @property
    def topics(self) -> list[str]:
        """The topics that have a handler."""
        return sorted(self._handlers)

    def is_outside(self, topic: str) -> bool:
        """Return whether the topic's handlers work outside the database."""
        return topic in self._outside

    def find(self, command: Command) -> Handler:
        """Return the handler of a command that works in the transaction.

        Raises:
            NoHandler: there is none, and no default one.
        """
        return cast(Handler, self._find(command))

    def find_outside(self, command: Command) -> OutsideHandler:
        """Return the handler of a command that works outside.

        Raises:
            NoHandler: there is none, and no default one.
        """
        return cast(OutsideHandler, self._find(command))

    def _find(self, command: Command) -> Handler | OutsideHandler:
        handlers = self._handlers.get(command.topic, {})
        found = handlers.get(command.name) or handlers.get(None)
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
