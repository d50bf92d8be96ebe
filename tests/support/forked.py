"""`inturn` in a process of its own that need not import anything first.

Importing is most of what a short command costs, and the tests run thousands. So one process has imported
everything, and forks for each command. A process that it has forked is a real one: it has its own
descriptors, environment, signals and end.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NoReturn

from inturn.cli.main import COMMANDS, main
from support.place import TESTS

#: What commands import only when they need it.
_LATER = ("alembic.command", "httpx2", "prometheus_client", "rich.table", "rich.text", "inturn.cli.run.child")


class Forked:
    """A process that was forked for a command line; the same to its users as a `subprocess.Popen`.

    It stays a zombie until somebody waits for it: so its number is never another's.
    """

    def __init__(self, args: list[str], environment: Mapping[str, str], descriptors: list[int]) -> None:
        self._pool = _pool()
        request = {"args": args, "environment": dict(environment), "directory": str(Path.cwd())}
        self.pid = self._pool.ask(request, descriptors)
        self._end = os.pidfd_open(self.pid)  # readable when it has ended
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, or the negative number of the signal that ended it; None while it runs."""
        if self._code is None and self._ends(0):
            self._code = os.waitstatus_to_exitcode(self._pool.ask({"wait": self.pid}))
            os.close(self._end)
        return self._code

    def wait(self, seconds: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it still runs after so many seconds.
        """
        if self._code is None:
            self._ends(seconds)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("inturn", seconds or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ends(self, seconds: float | None) -> bool:
        return bool(select.select([self._end], [], [], seconds)[0])


class _Pool:
    """The process that has imported everything, seen from the test."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "support.forked", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
        theirs.close()
        atexit.register(self._close)

    def ask(self, request: Mapping[str, object], descriptors: list[int] | None = None) -> int:
        socket.send_fds(self._ours, [json.dumps(request).encode()], descriptors or [])
        return int(self._ours.recv(100))

    def _close(self) -> None:
        self._ours.close()
        self._process.wait()


@cache
def _pool() -> _Pool:
    return _Pool()


def _serve(asked: socket.socket) -> None:
    """Fork for each request; return in the child, ready to run the command."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, 1_000_000, 3)
        if not message:
            os._exit(0)
        request = json.loads(message)
        if "wait" in request:
            asked.send(str(os.waitpid(request["wait"], 0)[1]).encode())
            continue
        pid = os.fork()
        if pid == 0:
            asked.close()
            _become(request, descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        asked.send(str(pid).encode())


def _become(request: dict[str, object], descriptors: list[int]) -> None:
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(str(request["directory"]))
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    sys.argv = [str(Path(sys.executable).with_name("inturn")), *request["args"]]  # type: ignore[misc]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _run() -> NoReturn:
    for section in COMMANDS.values():
        for where, _ in section.values():
            importlib.import_module(where.partition(":")[0])
    for name in _LATER:
        importlib.import_module(name)
    gc.freeze()  # else each child, at its end, looks through all of it once more, and copies it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest
    _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.exit(main())


if __name__ == "__main__":
    _run()
