"""Applier: which handler applies which command of which topic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import psycopg

from inturn.applier.command import Command
from inturn.schema.errors import InturnError

Handler: TypeAlias = Callable[[psycopg.Connection[Any], Command], object]
_H = TypeVar("_H", bound=Handler)


class NoHandler(InturnError):
    """A command has a name that no handler of its topic takes."""


class Applier:
    """The handlers of an application, registered per topic and command name.

    A handler gets the transaction's connection, on which its effects commit together with the
    key's progress, and the command. It neither commits nor rolls back. What it raises fails the
    command.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, dict[str | None, Handler]] = {}

    def handler(self, topic: str, name: str | None = None) -> Callable[[_H], _H]:
        """Return a decorator that registers a handler.

        Args:
            topic: the topic whose commands it applies.
            name: the command it applies; None: every command of the topic without its own handler.

        Raises:
            ValueError: there is one already for this topic and name.
        """

        def register(function: _H) -> _H:
            handlers = self._handlers.setdefault(topic, {})
            if name in handlers:
                what = "a default handler" if name is None else f"a handler for {name!r}"
                raise ValueError(f"topic {topic!r} has {what} already")
            handlers[name] = function
            return function

        return register

    @property
    def topics(self) -> list[str]:
        """The topics that have a handler."""
        return sorted(self._handlers)

    def find(self, command: Command) -> Handler:
        """Return the handler of a command.

        Raises:
            NoHandler: there is none, and no default one.
        """
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
