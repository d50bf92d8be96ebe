"""One of the processes of `inturn apply --processes`, as its parent sees it; its own side is in child."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any

from inturn.applier.metrics.tallies import Snapshot
from inturn.applier.process.totals import Totals
from inturn.cli.run.child import LINGER_SECONDS, Lines, Report
from inturn.cli.run.serve import Options

_BECAUSE = {
    signal.SIGKILL: ", by hand or because memory ran out",
    **dict.fromkeys(
        (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE),
        ", a crash in native code",
    ),
}


class Process:
    """A process and the socket to it.

    Attributes:
        obeys: it takes orders; before that it has no work.
        topics: those that it serves; None until it is at work.
        totals: what it has said to have done.
        counted: what it has said to have counted for metrics.
        report: its last word; None until then, and where there is none.
        socket: to be read when it has something to say.
        described: its number and pid, for the log.
    """

    def __init__(self, name: str, options: Options) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        self.obeys = False
        self.topics: list[str] | None = None
        self.totals = Totals()
        self.counted = Snapshot()
        self.report: Report | None = None
        self._told: set[str] = set()
        self._killed = False
        self._lines = Lines()
        self.socket, theirs = socket.socketpair()
        # It inherits that: a Ctrl-C, which reaches it too, waits until it counts signals.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with theirs:
            try:
                self._popen = subprocess.Popen(  # noqa: S603 - nothing of it comes from outside
                    # -P: inturn itself is not looked for in the current folder; the app is, later on.
                    [sys.executable, "-P", "-m", "inturn.cli.run.child", name, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                )
            except BaseException:
                self.socket.close()
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self.described = f"{name} (pid {self._popen.pid})"
        self._say(options.as_json())
        self.socket.setblocking(False)

    def has_ended(self) -> bool:
        """Ask whether it has said its last word, or died without one."""
        died = self._popen.poll() is not None
        if died:
            self.listen()  # it may have spoken meanwhile
        return died or self.report is not None

    @property
    def death(self) -> str:
        """How it died without a last word and without being asked to end; empty when it did not."""
        status = self._popen.poll()
        if self.report is not None or status is None or self._killed:
            return ""
        if status >= 0:
            return f"ended with status {status} without a word"
        if not self.obeys and -status in {signal.SIGTERM, signal.SIGINT}:
            return ""  # asked before it had any work
        try:
            name = signal.Signals(-status)
        except ValueError:  # of real time
            return f"was killed by signal {-status}"
        return f"was killed by {name.name}{_BECAUSE.get(name, '')}"

    @property
    def cut(self) -> bool:
        """Whether the parent had to kill it at work."""
        return self._killed and self.report is None

    def listen(self) -> bool:
        """Take in what it has said; return whether it may say more."""
        while True:
            try:
                received = self.socket.recv(65536)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not received:
                return False
            self._lines.feed(received)
            for line in self._lines:
                self._heed(json.loads(line))

    def tell(self, order: str) -> None:
        """Give it an order, STOP or CUT, once. One that takes none yet has no work: it is ended at once."""
        if order in self._told:
            return
        self._told.add(order)
        self._say(order)
        self.listen()
        if not self.obeys:
            self._popen.terminate()

    def wait(self, seconds: float) -> bool:
        """Wait until it is gone, for at most that many seconds; return whether it is."""
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)
        return self._popen.returncode is not None

    def kill(self) -> None:
        """End it by force, unless it is gone, and wait until it is."""
        if self._popen.poll() is None:
            self._killed = True
            self._popen.kill()
            self.wait(LINGER_SECONDS)

    def _say(self, line: str) -> None:
        with suppress(OSError):  # it has died: that is seen elsewhere
            self.socket.sendall(line.encode() + b"\n")

    def _heed(self, said: dict[str, Any]) -> None:
        match said:
            case {"obeys": obeys}:
                self.obeys = obeys
            case {"started": topics}:
                self.topics = topics
            case {"totals": totals}:
                self.totals = Totals(**totals)
            case {"counted": counted}:
                self.counted = Snapshot.from_json(counted)
            case {"ended": report}:
                self.report = Report(**report)
                self.totals = self.report.totals
