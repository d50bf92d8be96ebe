"""Applications whose only handler works outside the database, and never returns."""

from __future__ import annotations

import asyncio
import threading

from inturn.applier import Applier, Command

applier = Applier()


@applier.handler("posts", outside=True)
def hang(command: Command) -> None:
    print("stuck", flush=True)
    threading.Event().wait()


in_a_thread = Applier()


@in_a_thread.handler("posts", outside=True)
async def hang_in_a_thread(command: Command) -> None:
    print("stuck", flush=True)
    await asyncio.to_thread(threading.Event().wait)
