"""Crew: the workers of a process and their threads, those that were given up included."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeAlias

from inturn.applier.inside.worker import Worker
from inturn.applier.outside.worker import OutsideWorker
from inturn.applier.process.threads import NoThread, start_thread
from inturn.applier.process.totals import Totals

AnyWorker: TypeAlias = Worker | OutsideWorker

_LOOK_SECONDS = 0.1


class Crew:
    """The crew of one process. Threads may share it."""

    def __init__(self, ended_badly: Callable[[], None]) -> None:
        """Make an empty one.

        Args:
            ended_badly: called when a worker has ended with an error.
        """
        self._ended_badly = ended_badly
        self._threads: dict[AnyWorker, threading.Thread] = {}
        # Those that were given up, once that is done: another has their place, or none is to.
        self._left: set[AnyWorker] = set()

    @property
    def workers(self) -> list[AnyWorker]:
        return list(self._threads)

    def add(self, worker: AnyWorker, name: str) -> None:
        """Start a worker in a thread of its own.

        Raises:
            NoThread: the system has none for it.
        """

        def run() -> None:
            worker.run()
            if worker.error is not None:
                self._ended_badly()

        self._threads[worker] = start_thread(run, name)

    def leave(self, worker: AnyWorker) -> None:
        """Stop waiting for a worker that was given up: another has its place, or none will."""
        self._left.add(worker)

    def watched(self) -> list[Worker]:
        """Return the workers in the database's transactions that are at work and were not given up."""
        return [w for w in self._at_work() if isinstance(w, Worker) and not w.abandoned]

    def inside_runs(self) -> bool:
        """Return whether one of those is at work, or is being replaced."""
        return any(isinstance(worker, Worker) for worker in self._at_work())

    @property
    def given_up(self) -> int:
        """How many workers in the database's transactions were given up."""
        return sum(isinstance(worker, Worker) and worker.abandoned for worker in self.workers)

    @property
    def abandoned(self) -> int:
        """How many handlers were abandoned, because they do not return."""
        return sum(int(worker.abandoned) for worker in self.workers)

    @property
    def running(self) -> bool:
        """Whether a worker is still at work, or is being replaced."""
        return bool(self._at_work())

    @property
    def totals(self) -> Totals:
        """What the workers have done so far."""
        return Totals(
            keys=sum(worker.totals.keys for worker in self.workers),
            commands=sum(worker.totals.commands for worker in self.workers),
            failures=sum(worker.totals.failures for worker in self.workers),
            skipped=sum(worker.totals.skipped for worker in self.workers),
        )

    @property
    def error(self) -> Exception | None:
        """What ended a worker before it was asked to end."""
        return next((worker.error for worker in self.workers if worker.error), None)

    def wait(self, seconds: float) -> bool:
        """Wait for the workers to end, for at most that many seconds; return whether they have."""
        deadline = time.monotonic() + seconds
        # Again and again: one that it waits for may be given up meanwhile.
        while at_work := self._at_work():
            left = min(deadline - time.monotonic(), _LOOK_SECONDS)
            if left <= 0:
                return False
            if alive := [thread for thread in at_work.values() if thread.is_alive()]:
                alive[0].join(left)
            else:
                time.sleep(left)
        return True

    def cancel(self) -> None:
        """Begin to cancel what the workers wait for, of all at once: one takes long if its server is away."""
        for worker in self.workers:
            try:
                start_thread(worker.cancel, "inturn-cancel")
            except NoThread:
                worker.cancel()

    def _at_work(self) -> dict[AnyWorker, threading.Thread]:
        """Return the workers that are at work or being replaced, and their threads."""
        # First those that were left: whoever has their place is found afterwards.
        left = set(self._left)
        return {
            worker: thread
            for worker, thread in list(self._threads.items())
            if worker not in left and _is_at_work(worker, thread)
        }


def _is_at_work(worker: AnyWorker, thread: threading.Thread) -> bool:
    if isinstance(worker, Worker):
        return worker.abandoned or (thread.is_alive() and not worker.is_over)
    return thread.is_alive()
