"""Fleet: the workers of one process, from their start to their bounded end."""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from inturn.applier import calls
from inturn.applier.handlers import Applier
from inturn.applier.inside.hand import MOST_ABANDONED, Hand, TooManyAbandoned
from inturn.applier.inside.watchdog import Watchdog
from inturn.applier.inside.worker import Worker
from inturn.applier.outside.effect import Timeouts
from inturn.applier.outside.worker import OutsideWorker
from inturn.applier.process.chooser import Chooser
from inturn.applier.process.listener import Listener
from inturn.applier.process.recovery import Recovery
from inturn.applier.process.totals import Totals
from inturn.applier.stop import Bell, Bells, LoopBell, Stop
from inturn.schema.connection import connect, connect_async
from inturn.schema.errors import TargetRefused
from inturn.schema.source import DEFAULT_SCHEMA

log = logging.getLogger("inturn.applier")

#: How long a cancelled statement may take to come back, in seconds.
_CANCEL_SECONDS = 5.0
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a fleet ended.

    Attributes:
        keys, commands, failures: turns taken, commands applied, commands failed (each time counts).
        held: keys of its topics that are held now; None when the database could not tell.
        seconds: how long it ran.
        cut: some command was not finished within the grace time and was rolled back.
        error: what ended a worker before its time.
        skipped: commands that were passed over, because a handler asked for it or attempts ran out.
    """

    keys: int
    commands: int
    failures: int
    held: int | None
    seconds: float
    cut: bool
    error: Exception | None
    skipped: int = 0


class Fleet:
    """Workers in threads, each on its own connection, applying the same topics; one more for work outside."""

    def __init__(
        self,
        dsn: str,
        applier: Applier | None = None,
        *,
        topics: Sequence[str] = (),
        workers: int = 1,
        max_keys: int = 50,
        drain: bool = False,
        prepare: bool = True,
        schema: str = DEFAULT_SCHEMA,
        http_timeouts: Timeouts | None = None,
    ) -> None:
        """Make a fleet; nothing is connected yet.

        Args:
            dsn: libpq connection string.
            applier: the handlers of the topics with target `python`; without it only topics with
                SQL and HTTP targets are served.
            topics: which to serve; empty: every topic that can be, also those created later.
            workers: how many threads and connections.
            max_keys: the most keys that share a transaction.
            drain: stop when nothing is ready.
            prepare: let the driver prepare statements on the server; not through a pooler in
                transaction mode that does not know them.
            schema: where inturn is installed.
            http_timeouts: of the posts to HTTP targets; None: the defaults.
        """
        self._dsn = dsn
        self._count = workers
        self._max_keys = max_keys
        self._drain = drain
        self._prepare_threshold = 5 if prepare else None
        self._schema = schema
        self.stop = Stop()
        self.bell = Bell(workers)
        self.topics: list[str] = []
        self._chooser = Chooser(
            applier,
            topics,
            schema=schema,
            stop=self.stop,
            http_timeouts=http_timeouts or Timeouts(),
            start_outside=self._start_outside,
            others_breakers=lambda: self._outside.breakers if self._outside else {},
            abandoned=lambda: sum(int(worker.abandoned) for worker in list(self._workers)),
        )
        self._outside_bell = LoopBell()
        self._outside: OutsideWorker | None = None
        self._outside_lock = threading.Lock()
        self._recovery = Recovery()
        self._workers: list[Worker | OutsideWorker] = []
        self._threads: dict[Worker | OutsideWorker, threading.Thread] = {}
        self._error: Exception | None = None
        self._started_at = 0.0

    def start(self) -> None:
        """Connect once, choose the topics, and start the threads.

        Raises:
            psycopg.Error: the database cannot be reached or refuses.
            SchemaMismatch: its schema is not one that this package serves.
            UnknownTopic, TargetRefused: a topic asked for is not there or cannot be served, or
                there is none to drain.
        """
        with self._connect() as connection:
            targets = self._chooser.inside(connection, _name(1), strict=True)
            outside = self._chooser.outside_targets(self._chooser.served(connection), strict=True)
            self.topics = sorted([target.topic for target in targets] + [target.topic for target in outside])
        if not self.topics:
            self._report_nothing_to_serve()
        self._started_at = time.monotonic()
        for number in range(self._count):
            self._add_worker(number + 1)
        watchdog = Watchdog(self._connect, self._watched, self._replace, schema=self._schema, stop=self.stop)
        threading.Thread(target=watchdog.run, name="inturn-watchdog", daemon=True).start()
        if outside:
            self._start_outside()
        if not self._drain:
            listener = Listener(
                self._connect,
                schema=self._schema,
                stop=self.stop,
                bell=Bells([self.bell, self._outside_bell]),
            )
            threading.Thread(target=listener.run, name="inturn-listener", daemon=True).start()

    @property
    def running(self) -> bool:
        """Whether a worker is still at work."""
        return any(thread.is_alive() for thread in self._at_work())

    @property
    def totals(self) -> Totals:
        """What the workers have done so far."""
        return Totals(
            keys=sum(worker.totals.keys for worker in self._workers),
            commands=sum(worker.totals.commands for worker in self._workers),
            failures=sum(worker.totals.failures for worker in self._workers),
            skipped=sum(worker.totals.skipped for worker in self._workers),
        )

    def request_stop(self) -> None:
        """Ask every worker to end after the command in hand."""
        self.stop.request()
        self.bell.ring_all()
        self._outside_bell.ring()

    def wait(self, seconds: float) -> bool:
        """Wait for the workers to end, for at most that many seconds; return whether they have."""
        deadline = time.monotonic() + seconds
        # Again and again: one that it waits for may be given up meanwhile.
        while alive := [thread for thread in self._at_work() if thread.is_alive()]:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            alive[0].join(min(left, _LOOK_SECONDS))
        return not self.running

    def end(self, grace: float) -> Outcome:
        """End the workers: after the command in hand, or by cancelling it when the grace is over.

        Args:
            grace: seconds that the commands in hand may still take.
        """
        self.request_stop()
        cut = not self.wait(grace)
        if cut:
            self.stop.expire()
            for worker in self._workers:
                worker.cancel()
            self.wait(_CANCEL_SECONDS)
        totals = self.totals
        return Outcome(
            keys=totals.keys,
            commands=totals.commands,
            failures=totals.failures,
            held=self._count_held(),
            seconds=time.monotonic() - self._started_at,
            cut=cut,
            error=next((worker.error for worker in self._workers if worker.error), self._error),
            skipped=totals.skipped,
        )

    def pending(self) -> int:
        """Return how many commands are ready to be applied now. Reads them all.

        Raises:
            psycopg.Error: the database cannot be reached or refuses.
        """
        with self._connect() as connection:
            return calls.appliers.pending_commands(self._schema, self.topics).on(connection)

    def _count_held(self) -> int | None:
        try:
            with self._connect() as connection:
                return calls.appliers.count_held(self._schema, self.topics).on(connection)
        except psycopg.Error:
            return None

    def _report_nothing_to_serve(self) -> None:
        message = "there is no topic to serve"
        hint = "Create one with a SQL target, or name handlers: inturn apply --app MODULE:APPLIER"
        if self._drain:
            raise TargetRefused(message, hint=hint)
        log.warning("%s yet. %s", message, hint)

    def _add_worker(self, number: int) -> None:
        hand = Hand()
        worker = Worker(
            self._connect,
            functools.partial(self._chooser.inside, applier_id=_name(number), hand=hand),
            schema=self._schema,
            max_keys=self._max_keys,
            drain=self._drain,
            stop=self.stop,
            bell=self.bell,
            hand=hand,
            recovery=self._recovery,
        )
        self._spawn(worker, f"inturn-worker-{number}")

    def _at_work(self) -> list[threading.Thread]:
        """Return the threads of the workers that were not given up."""
        return [
            thread
            for worker, thread in list(self._threads.items())
            if isinstance(worker, OutsideWorker) or not worker.abandoned
        ]

    def _watched(self) -> list[Worker]:
        """Return the workers in the database's transactions that were not given up."""
        return [w for w in list(self._workers) if isinstance(w, Worker) and not w.abandoned]

    def _replace(self) -> None:
        """Start a worker in the place of one that was given up; too many of them end the process."""
        given_up = sum(isinstance(worker, Worker) and worker.abandoned for worker in self._workers)
        if given_up >= MOST_ABANDONED:
            self._error = TooManyAbandoned(given_up)
            self.request_stop()
        elif not self.stop.requested:
            self._add_worker(len(self._workers) + 2)

    def _spawn(self, worker: Worker | OutsideWorker, name: str) -> None:
        def run() -> None:
            worker.run()
            if worker.error is not None and not self._drain:
                # A process that serves a part no more must not look alive: its supervisor starts it again.
                self.request_stop()

        self._workers.append(worker)
        # Daemons: a handler that never returns must not keep the process after its grace.
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads[worker] = thread
        thread.start()

    def _start_outside(self) -> None:
        """Start the worker for work outside the database, unless it was started before."""
        with self._outside_lock:
            if self._outside is not None:
                return
            name = _name(self._count + 1)
            self._outside = OutsideWorker(
                self._connect,
                self._connect_async,
                functools.partial(self._chooser.outside, applier_id=name),
                applier_id=name,
                schema=self._schema,
                drain=self._drain,
                stop=self.stop,
                bell=self._outside_bell,
                others_run=lambda: any(self._threads[worker].is_alive() for worker in self._watched()),
                recovery=self._recovery,
            )
            self._spawn(self._outside, "inturn-outside-worker")

    async def _connect_async(self) -> psycopg.AsyncConnection[Any]:
        return await connect_async(
            self._dsn, prepare_threshold=self._prepare_threshold, application_name="inturn apply"
        )

    def _connect(self) -> psycopg.Connection[Any]:
        return connect(self._dsn, prepare_threshold=self._prepare_threshold, application_name="inturn apply")


def _name(number: int) -> str:
    """Return the name of a worker of this process, as turns and the registry of appliers know it."""
    return f"{socket.gethostname()}:{os.getpid()}:{number}"
