"""One of the processes of `inturn apply --processes`: `python -m inturn.cli.run.child NAME SOCKET`.

NAME is for people who list processes; SOCKET is the descriptor of its end of a pair of sockets. The parent
says on
it, a line each: the options, as JSON; `stop`, to end after the command in hand; `cut`, to let go of that too.
This process answers in lines of JSON: `{"obeys": true}` when it has imported the app and takes orders, before
it takes any work; `{"started": TOPICS}`; `{"totals": {...}}` as it gets on, and `{"counted": [...]}` where
metrics are served; and, as its last word, `{"ended": {...}}`, which is a Report. When the parent dies, the
socket ends: that is a `stop`.
"""

from __future__ import annotations

import functools
import json
import os
import select
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from inturn.applier.metrics.tallies import Tallies
from inturn.applier.process.totals import Totals
from inturn.cli.advice import called
from inturn.cli.errors import explain
from inturn.cli.exit_codes import ExitCode
from inturn.cli.run import logs
from inturn.cli.run.serve import Options, Signals, attend, begun, ending, exit_code

#: How long a process may take to end once nothing is in hand any more, in seconds: a statement is being
#: cancelled (5 s), or threads of the user's app keep it. Together with the default grace of 30 seconds
#: it is less than the 40 that the documentation gives supervisors.
LINGER_SECONDS = 8.0

#: How often it says what it has counted for metrics, in seconds.
COUNT_SECONDS = 1.0

#: The orders, and what they come to as requests to stop.
STOP, CUT = "stop", "cut"
_LEVELS = {STOP: 1, CUT: 2}


@dataclass(frozen=True, slots=True)
class Report:
    """How the fleet of one process ended; see Outcome.

    Attributes:
        keys, commands, failures, skipped: what it did.
        held: keys of its topics that are held; None when that could not be told.
        cut: a command was cut off when the grace was over.
        stopped: a signal to this very process ended it.
        error: what ended it before its time, in one line; empty after a good end.
        code: the exit code.
    """

    keys: int = 0
    commands: int = 0
    failures: int = 0
    skipped: int = 0
    held: int | None = None
    cut: bool = False
    stopped: bool = False
    error: str = ""
    code: int = ExitCode.OK

    @property
    def totals(self) -> Totals:
        return Totals(self.keys, self.commands, self.failures, self.skipped)


class Lines:
    """The whole lines among what was fed so far; each is taken once."""

    def __init__(self) -> None:
        self._bytes = b""

    def feed(self, received: bytes) -> None:
        self._bytes += received

    def __iter__(self) -> Iterator[str]:
        while b"\n" in self._bytes:
            line, _, self._bytes = self._bytes.partition(b"\n")
            yield line.decode()


class _Parent:
    """The parent, at the other end of the socket."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        # What handlers start has no part in this.
        self._socket.set_inheritable(False)
        self._lines = Lines()
        self._said = Totals()
        self._count_at = 0.0
        #: How often it asked to stop.
        self.requests = 0

    def options(self) -> Options | None:
        """Read the first line; None when the parent has died before it."""
        line = next(self._read(), None)
        return None if line is None else Options.from_json(line)

    def obey(self, grace: float) -> None:
        """Take orders from now on, in a thread; once the parent is gone, end within the grace, in seconds."""
        threading.Thread(target=self._obey, args=[grace], name="inturn-orders", daemon=True).start()

    def say(self, **what: Any) -> None:
        with suppress(OSError):  # it is gone, and nobody asks any more
            self._socket.sendall(json.dumps(what).encode() + b"\n")

    def say_totals(self, totals: Totals) -> None:
        """Say how far this process got, unless that is known, or the parent is not listening just now."""
        if totals != self._said and select.select([], [self._socket], [], 0)[1]:
            self._said = totals
            self.say(totals=asdict(totals))

    def say_counted(self, tallies: Tallies) -> None:
        """Say what was counted for metrics, every second unless the parent is not listening just now."""
        if time.monotonic() >= self._count_at and select.select([], [self._socket], [], 0)[1]:
            self._count_at = time.monotonic() + COUNT_SECONDS
            self.say(counted=tallies.snapshot().as_json())

    def _obey(self, grace: float) -> None:
        for line in self._read():
            self.requests = max(self.requests, _LEVELS[line])
        self.requests = max(self.requests, 1)
        logs.log.warning("the process that started this one is gone: ending after the command in hand")
        time.sleep(grace + LINGER_SECONDS)
        os._exit(ExitCode.UNFINISHED)  # something keeps it, and nobody is there to kill it

    def _read(self) -> Iterator[str]:
        """Yield the lines to come, until the parent is gone."""
        # Not by makefile: its lock, held by a thread that waits for a line, could break the end of Python.
        with suppress(OSError):
            while True:
                yield from self._lines
                received = self._socket.recv(65536)
                if not received:
                    return
                self._lines.feed(received)


def main() -> None:
    """Run one process's fleet to its end, and exit with what a single process would."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    parent = _Parent(int(sys.argv[-1]))
    options = parent.options()
    if options is None:
        return
    called.dsn, called.schema = options.named, options.schema
    logs.set_up(options.log_format, level=options.level)
    try:
        report = _serve(parent, options)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        report = _failed(error)
    parent.say(ended=asdict(report))
    sys.exit(report.code)


def _serve(parent: _Parent, options: Options) -> Report:
    fleet = options.fleet()
    signals = Signals()
    parent.obey(options.grace)
    parent.say(obeys=True)

    def requests() -> int:
        # Ctrl-C in a terminal reaches this process and the parent, which passes it on: that is one request.
        return max(signals.count, parent.requests)

    def look() -> None:
        parent.say_totals(fleet.totals)
        if options.counts:
            parent.say_counted(fleet.tallies)

    with ending(fleet, options.grace):
        # The parent has warned.
        if begun(functools.partial(fleet.start, warn=False), requests):
            parent.say(started=fleet.topics)
            outcome = attend(fleet, requests, look, grace=options.grace)
        else:
            outcome = fleet.end(options.grace)
    failed = _failed(outcome.error) if outcome.error is not None else Report()
    return Report(
        outcome.keys,
        outcome.commands,
        outcome.failures,
        outcome.skipped,
        held=outcome.held,
        cut=outcome.cut,
        stopped=signals.count > 0,
        error=failed.error,
        code=failed.code or exit_code(outcome, options),
    )


def _failed(error: Exception) -> Report:
    if os.environ.get("INTURN_TRACEBACK"):
        traceback.print_exception(error)
    line, code = explain(error)
    return Report(error=line, code=code)


if __name__ == "__main__":
    main()
