"""Several processes of `inturn apply` under a parent that looks after them: the parent's side.

Each process is started anew, not forked, and runs the same fleet by the same options. These go to it through
a pair of sockets, so no password stands on its command line. The pair ties both together: the parent misses
a process that died, and a process whose parent died ends by itself.

The parent starts no process in the place of one that died: it ends the others and fails. Whoever supervises
`inturn apply` (systemd, a container's runtime, cron) then sees that it failed, counts, waits before it starts
it again, and may tell somebody; restarts inside would hide a handler that crashes, or memory that runs out.
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import click

from inturn.applier import Fleet, Outcome
from inturn.applier.metrics.tallies import Snapshot
from inturn.applier.process.totals import Totals
from inturn.applier.stop import Stop
from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode
from inturn.cli.run import logs
from inturn.cli.run.child import CUT, LINGER_SECONDS, STOP
from inturn.cli.run.process import Process
from inturn.cli.run.serve import LOOK_SECONDS, Options

#: Where processes fail for different reasons, the first of these is the exit code; then comes any other.
_WORST_FIRST = (ExitCode.USAGE, ExitCode.SCHEMA, ExitCode.UNREACHABLE)


class Processes:
    """Several processes with a fleet each, attended like a single fleet; see serve.Attended.

    Leaving its block kills what still runs: nothing does after `end`.
    """

    def __init__(self, options: Options, count: int, requests: Callable[[], int]) -> None:
        """Start nothing yet.

        Args:
            options: of every process.
            count: how many processes.
            requests: says how often a stop was asked for; `start` waits for no process after that.
        """
        self._options = options
        self._count = count
        self._requests = requests
        self._processes: list[Process] = []
        self._at_work: list[Process] = []
        self._selector = selectors.DefaultSelector()
        self._started_at: float | None = None
        self._ended_at = 0.0
        self._held: int | None = None
        self._died = False
        self.stop = Stop()
        self.topics: list[str] = []

    def start(self) -> None:
        """Start the processes; wait until all are at work, one of them failed, or a stop is asked for.

        Raises:
            OSError: a process cannot be started.
            Failure: the system has no such processes.
        """
        if os.name != "posix":
            raise Failure("--processes is for POSIX systems", hint="Run inturn apply more than once instead")
        for number in range(1, self._count + 1):
            process = Process(f"process {number} of {self._count}", self._options)
            self._processes.append(process)
            self._at_work.append(process)
            self._selector.register(process.socket, selectors.EVENT_READ, process)
        while not (self.started or self.stop.requested or self._requests()):
            self._look(LOOK_SECONDS)

    @property
    def started(self) -> bool:
        """Whether every process has been at work."""
        return all(process.topics is not None for process in self._processes)

    @property
    def ran(self) -> bool:
        """Whether any process has been at work."""
        return self._started_at is not None

    @property
    def running(self) -> bool:
        """Whether a process is still at work."""
        return bool(self._at_work)

    @property
    def totals(self) -> Totals:
        """What the processes have said to have done so far."""
        each = [process.totals for process in self._processes]
        return Totals(
            keys=sum(totals.keys for totals in each),
            commands=sum(totals.commands for totals in each),
            failures=sum(totals.failures for totals in each),
            skipped=sum(totals.skipped for totals in each),
        )

    def counted(self) -> Snapshot:
        """Return what the processes have said to have counted for metrics."""
        found = Snapshot()
        for process in list(self._processes):
            found.add(process.counted)
        return found

    def request_stop(self) -> None:
        """Ask every process to end after the command in hand."""
        self.stop.request()
        for process in self._processes:
            process.tell(STOP)

    def wait(self, seconds: float) -> bool:
        """Wait for the processes to end, for at most that many seconds; return whether they have."""
        deadline = time.monotonic() + seconds
        self._look(0)
        while self.running and (left := deadline - time.monotonic()) > 0:
            self._look(min(left, LOOK_SECONDS))
        return not self.running

    def end(self, grace: float) -> Outcome:
        """End the processes: after the command in hand, at once when the grace is over, or by force.

        Args:
            grace: seconds that the commands in hand may still take.
        """
        self.request_stop()
        if not self.wait(grace):
            for process in self._processes:
                process.tell(CUT)
            self.wait(LINGER_SECONDS)
        gone_at = time.monotonic() + LINGER_SECONDS
        for process in self._processes:
            if process in self._at_work or not process.wait(max(gone_at - time.monotonic(), 0)):
                logs.log.error("%s did not end, and is killed", process.described)
                process.kill()
        self._look(0)
        return self._outcome()

    def pending(self) -> int:
        """Return how many commands are ready to be applied now. Reads them all.

        Raises:
            psycopg.Error: the database cannot be reached or refuses.
        """
        counter = Fleet(self._options.dsn, schema=self._options.schema)
        counter.topics = self.topics
        return counter.pending()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
            process.socket.close()
        self._selector.close()

    def _look(self, seconds: float) -> None:
        """Take in what the processes say, waiting that long, and judge those that have ended."""
        for key, _ in self._selector.select(seconds):
            process: Process = key.data
            if not process.listen():
                self._selector.unregister(process.socket)
        ended = [process for process in self._at_work if process.has_ended()]
        first = next((process.topics for process in self._processes if process.topics is not None), None)
        if self._started_at is None and first is not None:
            self._started_at = time.monotonic()
            self.topics = first
        for process in ended:
            self._at_work.remove(process)
            self._judge(process)

    def _judge(self, process: Process) -> None:
        """Let the others go on or not, now that one has ended."""
        self._ended_at = time.monotonic()
        report = process.report
        if report is not None and report.held is not None:
            self._held = report.held  # of all processes: the last one to count knows best
        # A process that drained leaves the rest to the others. Nothing else ends one while they go on.
        if not (self._options.drain and report is not None and not report.error and not report.stopped):
            self.request_stop()
        if process.death:
            self._died = True
            logs.log.error(
                "%s %s; the others end after the command in hand, and what was not committed is tried again",
                process.described,
                process.death,
            )

    def _outcome(self) -> Outcome:
        totals = self.totals
        reports = [process.report for process in self._processes if process.report is not None]
        return Outcome(
            keys=totals.keys,
            commands=totals.commands,
            failures=totals.failures,
            held=self._held,
            seconds=self._ended_at - self._started_at if self._started_at is not None else 0.0,
            cut=any(report.cut for report in reports) or any(process.cut for process in self._processes),
            error=self._error({report.error: report.code for report in reports if report.error}),
            skipped=totals.skipped,
        )

    def _error(self, failures: dict[str, int]) -> Exception | None:
        """Return what ended the processes before their time: the worst of it; the rest is logged."""
        lines = worst_first(failures)
        for line in lines[1:]:
            logs.log.error("%s", line)
        if lines:
            return Failure(lines[0], code=ExitCode(failures[lines[0]]))
        return click.exceptions.Exit(ExitCode.ERROR) if self._died else None  # which was said when it died


def worst_first(failures: dict[str, int]) -> list[str]:
    """Sort why processes failed: first what a restart cannot help.

    Args:
        failures: a line each, and its exit code. What several processes say stands there once.
    """
    places = {int(code): place for place, code in enumerate(_WORST_FIRST)}
    return sorted(failures, key=lambda line: places.get(failures[line], len(places)))
