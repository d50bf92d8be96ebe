"""An application whose handlers outside the database log a line, in each way in which one can be called."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable

from inturn.applier import Applier, Command

applier = Applier()


@applier.handler("posts", "plain", outside=True)
def _plain(command: Command) -> None:
    logging.getLogger("posts").info("counting")


@applier.handler("posts", "async", outside=True)
async def _async(command: Command) -> None:
    await asyncio.sleep(0)
    _plain(command)


@applier.handler("posts", "decorated", outside=True)
@functools.wraps(_async)
def _decorated(command: Command) -> Awaitable[None]:
    return _async(command)


@applier.handler("posts", "thread", outside=True)
async def _thread(command: Command) -> None:
    await asyncio.to_thread(_plain, command)


class _Object:
    async def __call__(self, command: Command) -> None:
        await _async(command)


applier.handler("posts", "object", outside=True)(_Object())
