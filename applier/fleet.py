"""Fleet: the workers of one process, from their start to their bounded end."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from inturn.applier import calls
from inturn.applier.handlers import Applier
from inturn.applier.inside.hand import MOST_ABANDONED, Hand, TooManyAbandoned
from inturn.applier.inside.visits import careful_at_first
from inturn.applier.inside.worker import Worker
from inturn.applier.metrics.tallies import Tallies
from inturn.applier.outside.effect import Timeouts
from inturn.applier.outside.worker import OutsideWorker
from inturn.applier.process.chooser import Chooser
from inturn.applier.process.connections import Connections, FirstConnection, warn_superuser
from inturn.applier.process.crew import Crew
from inturn.applier.process.failure_log import FAILURES
from inturn.applier.process.helpers import count_held, start_helpers
from inturn.applier.process.names import worker_name
from inturn.applier.process.recovery import Recovery
from inturn.applier.process.threads import NoThread
from inturn.applier.process.totals import Totals
from inturn.applier.stop import Bell, Bells, LoopBell, Stop
from inturn.schema.advice import advised
from inturn.schema.errors import InturnError, TargetRefused
from inturn.schema.source import DEFAULT_SCHEMA

log = logging.getLogger("inturn.applier")

#: How long a cancelled statement may take to come back, in seconds.
_CANCEL_SECONDS = 5.0
#: How long it is asked which keys are held, where its database may be away: after all but a drain.
_COUNT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a fleet ended.

    Attributes:
        keys: how many turns it took; a key that was claimed twice counts twice.
        commands, failures: how many commands it applied, and how many attempts failed.
        held: how many keys of its topics are held now; None when the database could not tell.
        seconds: how long it ran.
        cut: whether a command was not finished within the grace time, so that it was rolled back.
        error: what ended a worker before it was asked to end; None: nothing did.
        skipped: commands that were skipped, because a handler asked for it or attempts ran out.
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
    """Workers in threads, each with its own connection, that apply the same topics: what `inturn apply` runs.

    One more thread works outside the database. Nothing is connected before `start`.

    Args:
        dsn: libpq connection string; what it leaves out comes from the PG* variables.
        applier: the handlers of the topics with target `python`; None: those topics are not served.
        topics: the topics to serve; empty: every topic that can be served, also those created later.
        workers: how many threads, each with a connection.
        max_keys: the most keys that share a transaction.
        drain: stop when nothing is ready, instead of waiting for more.
        prepare: whether the driver may prepare statements on the server; not every pooler supports them.
        schema: the schema in which inturn is installed.
        http_timeouts: those of the posts to HTTP targets; None: the defaults.
        prune: whether to remove what the topics' retain allows, while nothing is ready.

    Raises:
        ValueError, TypeError: workers or max_keys is below 1; topics is a text, not a list of texts.
    """

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
        prune: bool = False,
    ) -> None:
        _check_numbers(topics, workers, max_keys)
        self._connections = Connections(dsn, 5 if prepare else None)
        self._first = FirstConnection(self._connections)
        self._count, self._max_keys = workers, max_keys
        self._schema, self._drain, self._prune = schema, drain, prune
        self.stop, self.bell, self.tallies = Stop(), Bell(workers), Tallies()
        self.topics: list[str] = []
        self._chooser = Chooser(
            applier,
            topics,
            schema=schema,
            stop=self.stop,
            http_timeouts=http_timeouts or Timeouts(),
            start_outside=self._start_outside,
            others_breakers=lambda: self._outside.breakers if self._outside else {},
            abandoned=lambda: self._crew.abandoned,
            tallies=self.tallies,
        )
        self._outside: OutsideWorker | None = None
        self._outside_bell, self._outside_lock = LoopBell(), threading.Lock()
        self._recovery, self._crew = Recovery(), Crew(self._serve_no_more)
        self._error: Exception | None = None
        self._started_at = time.monotonic()

    def start(self, *, warn: bool = True) -> None:
        """Connect once, choose the topics, and start the threads. After `request_stop` it starts none.

        Args:
            warn: whether to log a warning when the login is a superuser.

        Raises:
            psycopg.Error: the database cannot be reached, or refuses.
            SchemaMismatch, StatementPooling: this package does not serve the schema that is installed, or the
                database is reached through a pooler in statement mode.
            SchemaNameRefused: no schema of inturn can have this name.
            UnknownTopic, TargetRefused: a topic of `topics` does not exist or cannot be served; or with
                `drain` there is no topic to serve.
            NoThread: the system gives the process too few threads; call `end` to end those that run.
            RuntimeError: it was started before.
        """
        with self._first as connection:
            targets = self._chooser.inside(connection, worker_name(1), strict=True)
            outside = self._chooser.outside_targets(self._chooser.served(connection), strict=True)
            if warn:
                warn_superuser(connection)
            self.topics = sorted([*(each.topic for each in targets), *(each.topic for each in outside)])
            if self.stop.requested:
                self._first.close()
                return
            if not self.topics:
                _report_nothing_to_serve(self._schema, drain=self._drain)
        self._started_at = time.monotonic()
        try:
            for number in range(self._count):
                self._add_worker(number + 1, self._chooser.careful_keys)
            bell = None if self._drain else Bells([self.bell, self._outside_bell])
            start_helpers(self._connections, self._crew, self._replace, self._schema, self.stop, bell)
            if outside:
                self._start_outside()
        except NoThread:
            self.request_stop()  # of those that have begun, after the command in hand
            raise

    @property
    def running(self) -> bool:
        """Whether a worker is still running."""
        return self._crew.running

    @property
    def totals(self) -> Totals:
        """What the workers have done so far."""
        return self._crew.totals

    def request_stop(self) -> None:
        """Ask every worker to end after its current command, and return at once."""
        self.stop.request()
        self.bell.ring_all()
        self._outside_bell.ring()

    def wait(self, seconds: float) -> bool:
        """Wait for the workers to end, for at most that many seconds; return whether they have ended."""
        return self._crew.wait(seconds)

    def end(self, grace: float) -> Outcome:
        """End the workers after their current commands; cancel what still runs after `grace` seconds."""
        self.request_stop()
        cut = not self.wait(grace)
        if cut:
            self.stop.expire()
            self._crew.cancel()
            self.wait(_CANCEL_SECONDS)
        with suppress(Exception):  # a log that fails takes nothing away of how it ended
            FAILURES.say(everything=True)
        self._first.close()
        error, held = _advised(self._crew.error or self._error, self._schema), None
        if self._crew.workers:
            # On it depends the exit code of a drain, to which the database has answered just now.
            seconds = None if self._drain and not cut and error is None else _COUNT_SECONDS
            held = count_held(self._connections, self._schema, self.topics, seconds)
        ran_for = time.monotonic() - self._started_at
        return Outcome(**asdict(self.totals), held=held, seconds=ran_for, cut=cut, error=error)

    def pending(self) -> int:
        """Return how many commands of its topics are ready now; it reads them all. Raises psycopg.Error."""
        with self._connections.connect() as connection:
            return calls.appliers.pending_commands(self._schema, self.topics).on(connection)

    def _add_worker(self, number: int, careful: Callable[[str], float]) -> None:
        hand = Hand()
        worker = Worker(
            self._first.take if number == 1 else self._connections.connect,
            functools.partial(self._chooser.inside, applier_id=worker_name(number), hand=hand),
            schema=self._schema,
            applier_id=worker_name(number),
            max_keys=self._max_keys,
            drain=self._drain,
            stop=self.stop,
            bell=self.bell,
            hand=hand,
            recovery=self._recovery,
            tallies=self.tallies,
            prune=self._prune,
            careful=careful,
        )
        self._crew.add(worker, f"inturn-worker-{number}")

    def _replace(self, worker: Worker, careful: bool) -> None:
        """Start a worker in the place of one that was given up; too many of them end the process."""
        try:
            if self._crew.given_up >= MOST_ABANDONED:
                self._error = TooManyAbandoned(self._crew.given_up)
            elif not self.stop.requested:
                self._add_worker(len(self._crew.workers) + 2, careful_at_first if careful else lambda _: 0)
        except NoThread as error:  # a new process may get one
            self._error = error
        if self._error is not None:
            self.request_stop()
        self._crew.leave(worker)

    def _serve_no_more(self) -> None:
        if not self._drain:
            # A process that serves a part no more must not look alive: its supervisor starts it again.
            self.request_stop()

    def _start_outside(self) -> None:
        """Start the worker for work outside the database, unless it was started before."""
        with self._outside_lock:
            if self._outside is not None:
                return
            name = worker_name(self._count + 1)
            self._outside = OutsideWorker(
                self._connections.connect,
                self._connections.connect_async,
                functools.partial(self._chooser.outside, applier_id=name),
                applier_id=name,
                schema=self._schema,
                drain=self._drain,
                stop=self.stop,
                bell=self._outside_bell,
                others_run=self._crew.inside_runs,
                recovery=self._recovery,
                tallies=self.tallies,
            )
            self._crew.add(self._outside, "inturn-outside-worker")


def _check_numbers(topics: object, workers: int, max_keys: int) -> None:
    for name, number in (("workers", workers), ("max_keys", max_keys)):
        if number < 1:
            raise ValueError(f"{name} is {number}; 1 or more are needed")
    if isinstance(topics, str):
        raise TypeError(f"topics is the text {topics!r}; give a list of topics: [{topics!r}]")


def _advised(error: Exception | None, schema: str) -> Exception | None:
    if isinstance(error, InturnError):  # whoever raised it may not know what the schema is called
        error.hint = advised(error.hint, schema)
    return error


def _report_nothing_to_serve(schema: str, *, drain: bool) -> None:
    message = "there is no topic to serve"
    hint = advised(
        "Create one with a SQL target, or name handlers: inturn apply --app MODULE:APPLIER", schema
    )
    if drain:
        raise TargetRefused(message, hint=hint)
    log.warning("%s yet. %s", message, hint)
