"""The keeper: renews the leases of commands at work, and cuts off those whose lease could not be."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from inturn.applier.outside.lanes import Work, place
from inturn.applier.outside.leases import LeaseStep
from inturn.applier.outside.recorder import Recorder

log = logging.getLogger("inturn.applier")

#: How often leases are looked at that may have to be renewed.
KEEP_SECONDS = 0.05


async def keep_leases(works: Callable[[], Sequence[Work]], recorder: Recorder) -> None:
    """Renew the leases of commands at work; cut off those whose lease could not be. Never returns."""
    while True:
        await asyncio.sleep(KEEP_SECONDS)
        now = time.monotonic()
        for work in works():
            if not work.at_work:
                continue
            if not work.renewing and now >= work.lease.renew_at:
                work.renewing = True
                asyncio.create_task(_renew(work, recorder)).add_done_callback(_seen)
            elif work.renewing and now >= work.lease.ends_at:
                work.cut()


async def _renew(work: Work, recorder: Recorder) -> None:
    try:
        # A command that ended meanwhile may have ended the lease: that is not to be told.
        kept = await recorder.record(LeaseStep(work.lease))
        if kept == "fenced" and work.at_work:
            work.fenced = True
            log.warning("fenced off: the lease is gone, its command is cut off", extra=place(work.lease))
            work.cut()
    finally:
        work.renewing = False


def _seen(task: asyncio.Task[None]) -> None:
    # What it raised, the next statement meets too.
    if not task.cancelled():
        task.exception()
