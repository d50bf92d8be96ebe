"""`inturn` as a process of its own: started, signalled, killed, and asked what it said."""

from __future__ import annotations

import codecs
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from support.asked import DONE_HERE
from support.forked import Forked
from support.place import TESTS
from support.roles import with_login


class InturnProcess:
    """A running `inturn`; leaving its block kills it.

    Args:
        dsn: the database, given as INTURN_DSN; the owner's: with the login that the command has.
        args: the command line after `inturn`.
        environment: more variables.
    """

    def __init__(self, dsn: str, *args: str, environment: Mapping[str, str] | None = None) -> None:
        dsn, *words = with_login(dsn, *args)
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TESTS)]))
        self._out = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed at the end of the block
        self._err = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._popen = _start(
            words,
            {
                **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
                "PYTHONPATH": path,
                "PGCONNECT_TIMEOUT": "10",
                "INTURN_DSN": dsn,
                **(environment or {}),
            },
            self._out.fileno(),
            self._err.fileno(),
            # Python itself reads these when it starts.
            fork=not any(
                name.startswith(("PYTHON", "LC_", "LANG")) for name in {*(environment or {})} - DONE_HERE
            ),
        )

    @property
    def out(self) -> str:
        return self._read(self._out.fileno())

    @property
    def err(self) -> str:
        return self._read(self._err.fileno())

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; a SIGSTOP is waited for, since a thread may run on for a moment."""
        self._popen.send_signal(number)
        threads = Path(f"/proc/{self._popen.pid}/task")
        while number == signal.SIGSTOP and not all(
            # The state comes after the name, which may hold anything.
            (thread / "stat").read_text().rpartition(")")[2].split()[0] in "TtZX"
            for thread in threads.glob("*")
        ):
            time.sleep(0.001)

    def kill(self) -> None:
        """SIGKILL it, and wait until it is gone."""
        self._popen.kill()
        self._popen.wait()

    def exit_code(self, seconds: float = 100) -> int:
        """Wait for its end."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running: {self.out}\n{self.err}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        if error is not None:
            error.add_note(f"inturn said: {self.out}{self.err}")
        self._out.close()
        self._err.close()

    @staticmethod
    def _read(descriptor: int) -> str:
        # The child writes at the end of the same open file: read without moving its position.
        # It may be writing: then a character at the end is not all there.
        written = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        return codecs.getincrementaldecoder("utf-8")().decode(written)


def _start(
    args: list[str], environment: dict[str, str], out: int, err: int, *, fork: bool
) -> subprocess.Popen[bytes] | Forked:
    if fork:
        with Path(os.devnull).open() as nothing:
            return Forked(args, environment, [nothing.fileno(), out, err])
    program = str(Path(sys.executable).with_name("inturn"))
    return subprocess.Popen(
        [program, *args], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment
    )


def inturn_apply(
    dsn: str, *args: str, app: str | None = "support.shop:applier", **environment: str
) -> InturnProcess:
    """Start `inturn apply`, by default with the handlers of support.shop."""
    named = ["--app", app] if app else []
    return InturnProcess(dsn, "apply", *named, *args, environment=environment)


def run_inturn(dsn: str, *args: str, **environment: str) -> tuple[int, str, str]:
    """Run `inturn` to its end; return its exit code, stdout and stderr."""
    with InturnProcess(dsn, *args, environment=environment) as process:
        return process.exit_code(), process.out, process.err


def run_apply(
    dsn: str, *args: str, app: str | None = "support.shop:applier", **environment: str
) -> tuple[int, str, str]:
    """Run `inturn apply` to its end; return its exit code, stdout and stderr."""
    named = ["--app", app] if app else []
    return run_inturn(dsn, "apply", *named, *args, **environment)


def seconds_of(process: InturnProcess) -> float:
    """Return how long the process takes from now to its end."""
    started_at = time.monotonic()
    process.exit_code()
    return time.monotonic() - started_at
