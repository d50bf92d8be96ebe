"""Registering handlers: what is found for a command, and which functions are refused before they get one."""

from __future__ import annotations

import functools
import gc
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest.mock import MagicMock, Mock

import psycopg
import pytest
from support import not_run
from support.shop import TOPIC

from inturn.applier import Applier, Command, HandlerDidNotRun, NoHandler
from inturn.applier.handlers import refuse_unrun

Connection = psycopg.Connection[Any]


def _command(name: str, topic: str = TOPIC) -> Command:
    return Command(topic, "a", 1, name)


def _takes_one(command: Command) -> None: ...


def _nothing(connection: Connection, command: Command) -> None: ...


def _takes_three(session: object, connection: Connection, command: Command) -> None: ...


def test_a_handler_is_found_by_topic_and_name_else_the_default() -> None:
    handlers = Applier()

    @handlers.handler(TOPIC, "insert")
    def insert(connection: Connection, command: Command) -> None: ...

    @handlers.handler(TOPIC)
    def default(connection: Connection, command: Command) -> None: ...

    handlers.handler("other", "insert")(_nothing)
    assert handlers.find(_command("insert")) is insert
    assert handlers.find(_command("delete")) is default
    assert handlers.find(_command("insert", "other")) is _nothing
    assert handlers.topics == ["other", TOPIC]


def test_a_handler_is_found_although_it_is_empty() -> None:
    """As an object that is a collection of steps: the default one would apply its commands."""

    class Steps(list[str]):
        def __call__(self, connection: Connection, command: Command) -> None: ...

    handlers, steps = Applier(), Steps()
    handlers.handler(TOPIC, "insert")(steps)
    handlers.handler(TOPIC)(_nothing)
    assert handlers.find(_command("insert")) is steps


def test_without_a_default_an_unknown_name_is_refused_with_the_known_ones() -> None:
    handlers = Applier()
    handlers.handler(TOPIC, "insert")(_nothing)
    handlers.handler(TOPIC, "delete")(_nothing)
    with pytest.raises(NoHandler, match=r"no handler for command 'updat'.*'delete', 'insert'") as refused:
        handlers.find(_command("updat"))
    assert (refused.value.topic, refused.value.key, refused.value.seq) == (TOPIC, "a", 1)


def test_a_second_handler_for_the_same_command_is_refused() -> None:
    handlers = Applier()
    handlers.handler(TOPIC, "insert")(_nothing)
    handlers.handler(TOPIC)(_nothing)
    with pytest.raises(ValueError, match="has a handler for 'insert' already"):
        handlers.handler(TOPIC, "insert")(_nothing)
    with pytest.raises(ValueError, match="has a default handler already"):
        handlers.handler(TOPIC)(_nothing)


async def _async(*_: object) -> None: ...


def _generator(*_: object) -> Iterator[None]:
    yield None


async def _async_generator(*_: object) -> AsyncIterator[None]:
    yield None


class _Callable:
    """An object whose call is one of those."""

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def method(self, *args: object) -> object:
        return self._call(*args)

    def __call__(self, *args: object) -> object:
        return self._call(*args)


class _AsyncCallable:
    async def __call__(self, *_: object) -> None: ...

    async def method(self, *_: object) -> None: ...


class _Answering(_Callable):
    """An object that has every attribute, also what inspect looks for."""

    def __init__(self) -> None: ...

    def __getattr__(self, name: str) -> object:
        return object()


def _decorated(function: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(function)
    def wrapper(*args: object) -> object:
        return function(*args)

    return wrapper


_UNRUN = dict(zip(not_run.IN_PYTHON, (_async, _generator, _async_generator), strict=True))
_BEHIND: dict[str, Callable[[Callable[..., object]], Callable[..., object]]] = {
    "nothing": lambda function: function,
    "partial": functools.partial,
    "partial of partial": lambda function: functools.partial(functools.partial(function), None),
    "decorator": _decorated,
    "partial of a decorator": lambda function: functools.partial(_decorated(function)),
    "decorator of a partial": lambda function: _decorated(functools.partial(function)),
}


@pytest.mark.parametrize("behind", _BEHIND)
@pytest.mark.parametrize("kind", _UNRUN)
def test_a_function_that_a_call_does_not_run_is_refused(kind: str, behind: str) -> None:
    handlers = Applier()
    function = _BEHIND[behind](_UNRUN[kind])
    with pytest.raises(TypeError, match="async def" if kind == "an async def" else "generator function"):
        handlers.handler(TOPIC)(function)
    if kind == "an async def":
        handlers.handler(TOPIC, outside=True)(function)
    else:
        with pytest.raises(TypeError, match="generator function"):
            handlers.handler(TOPIC, outside=True)(function)
    assert handlers.topics == ([TOPIC] if kind == "an async def" else [])


@pytest.mark.parametrize(
    "function", [_AsyncCallable(), _AsyncCallable().method, _decorated(_AsyncCallable())]
)
def test_an_async_method_is_refused(function: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match="outside=True"):
        Applier().handler(TOPIC)(function)


def test_a_decorator_without_its_parentheses_is_refused() -> None:
    handlers = Applier()
    wrong: Any = (handlers.handler, handlers.batch_handler, functools.partial(handlers.handler, TOPIC))
    for decorator in wrong:
        with pytest.raises(TypeError, match=r"is _nothing, not a text: write @applier.handler\("):
            decorator(_nothing)
    assert handlers.topics == []


def test_what_can_be_called_is_registered() -> None:
    handlers = Applier()
    called: list[Callable[..., object]] = [
        *(_Callable(_nothing), _Callable(_nothing).method, Mock(), MagicMock(), _Answering(), max),
        _decorated(_takes_three),  # as one that puts in the first argument
    ]
    for name, function in enumerate(called):
        handlers.handler(TOPIC, str(name))(function)
    with pytest.raises(TypeError, match="cannot be called"):
        handlers.handler(TOPIC)(5)  # type: ignore[type-var]


def test_a_function_that_does_not_take_what_a_handler_gets_is_refused() -> None:
    """Each command would fail with a TypeError, and hold its key."""
    handlers = Applier()
    one, two, three = _takes_one, _nothing, _takes_three
    partial: Any = functools.partial
    decorators: dict[str, tuple[Callable[[Any], Any], list[Callable[..., object]]]] = {
        "(connection, command)": (handlers.handler(TOPIC), [one, three, partial(two, None)]),
        "(connection, commands)": (handlers.batch_handler(TOPIC), [one, three, partial(two, None)]),
        "(command)": (handlers.handler(TOPIC, outside=True), [two, three, partial(one, None)]),
    }
    for gets, (decorator, wrong) in decorators.items():
        for function in wrong:
            with pytest.raises(TypeError, match=rf"is called with {re.escape(gets)}: (too many|missing)"):
                decorator(function)
    assert handlers.topics == []


@pytest.mark.parametrize("kind", _UNRUN)
def test_what_a_handler_returns_unrun_is_refused(kind: str) -> None:
    with pytest.raises(HandlerDidNotRun, match="its body did not run"):
        refuse_unrun(_UNRUN[kind]())
    with pytest.raises(HandlerDidNotRun, match="an awaitable"):
        refuse_unrun(_Awaitable())
    gc.collect()  # a coroutine that was never awaited would warn now


class _Awaitable:
    def __await__(self) -> Iterator[None]:
        yield None


@pytest.mark.parametrize("result", [None, 0, "x", [1], range(3), iter([1]), object()])
def test_any_other_result_is_ignored(result: object) -> None:
    refuse_unrun(result)
