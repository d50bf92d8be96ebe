"""What may be registered as a handler: a function whose body a call runs, with the arguments that it gets."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence

#: An object may answer for every attribute, with a new one each time.
_MOST_LAYERS = 50


def check_text(what: str, given: object) -> None:
    """Make sure that a decorator was given a text: `@applier.handler` alone would register nothing.

    Raises:
        TypeError: it was given something else.
    """
    if not isinstance(given, str):
        name = getattr(given, "__qualname__", None) or repr(given)
        raise TypeError(
            f'the {what} of a handler is {name}, not a text: write @applier.handler("TOPIC", "NAME")'
        )


def check_function(function: object, gets: Sequence[str]) -> None:
    """Make sure that a call of a handler would run it.

    Args:
        gets: what it is called with; without a connection it works outside the database.

    Raises:
        TypeError: it would not.
    """
    name = getattr(function, "__qualname__", None) or repr(function)
    if not callable(function):
        raise TypeError(f"handler {name} cannot be called")
    if any(inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in _layers(function)):
        raise TypeError(
            f"handler {name} is a generator function, whose body a call does not run: "
            "use no yield in a handler, and register a plain function that iterates it"
        )
    if "connection" in gets and is_async(function):
        raise TypeError(
            f"handler {name} is an `async def`, which nobody awaits inside the transaction: register a plain "
            "function (also where a decorator awaits it), or work outside the database by "
            "handler(topic, outside=True)"
        )
    try:
        # A decorator's own arguments, whatever those are of what it wraps.
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return  # some builtin functions and odd objects do not tell
    try:
        signature.bind(*gets)
    except TypeError as error:
        raise TypeError(f"handler {name} is called with ({', '.join(gets)}): {error}") from None


def is_async(handler: object) -> bool:
    """Return whether what a call of this handler returns has to be awaited."""
    return any(inspect.iscoroutinefunction(layer) for layer in _layers(handler))


def _layers(function: object) -> Iterator[object]:
    """Yield the callables that a call goes through, as far as they tell: partials, decorators, __call__."""
    waiting: list[object] = [function]
    seen: set[int] = set()
    while waiting and len(seen) < _MOST_LAYERS:
        layer = waiting.pop()
        if layer is None or id(layer) in seen:
            continue
        seen.add(id(layer))
        yield layer
        if isinstance(layer, functools.partial):
            waiting.append(layer.func)
        waiting.append(getattr(layer, "__wrapped__", None))
        if not inspect.isroutine(layer) and not isinstance(layer, type):
            waiting.append(getattr(type(layer), "__call__", None))  # noqa: B004 - the method, to look at it
