"""What a handler returns when its body has not run, a coroutine or a generator, never counts as applied."""

from __future__ import annotations

import inspect

from inturn.applier.command import Command
from inturn.schema.errors import InturnError


class HandlerDidNotRun(InturnError):
    """A handler returned an awaitable or a generator: nothing of its body was executed."""


def refuse_unrun(result: object, command: Command) -> None:
    """Refuse what a handler returned when that is its body, not yet run.

    Raises:
        HandlerDidNotRun: it is an awaitable, a generator or an asynchronous generator.
    """
    if not (inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result)):
        return
    if inspect.iscoroutine(result) or inspect.isgenerator(result):
        result.close()  # or Python warns that nobody ever awaited it
    raise HandlerDidNotRun(
        f"the handler of command {command.name!r} returned {type(result).__name__}: its body did not run",
        hint="Make it a plain function. A handler outside the database may be async def",
        topic=command.topic,
        key=command.key,
        seq=command.seq,
    )
