"""`inturn` in a process of its own that need not import anything first.

Importing is most of what a short command costs, and the tests run thousands. So one process has imported
everything, and forks for each command. A process that it has forked is a real one: it has its own
descriptors, environment, signals and end. What a shell starts asks it by a program: see `support.asked`.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from inturn.cli.main import COMMANDS, main
from support.asked import SCRIPTS, Door, become, write_program
from support.place import TESTS

#: What commands import only when they need it, and what the modules of `support` need that are run.
_LATER = (
    *("alembic.command", "httpx2", "prometheus_client", "rich.table", "rich.text", "inturn.cli.run.child"),
    *("inturn.applier.receiver", "socketserver", "standardwebhooks", "wsgiref.simple_server"),
    *("support.database", "support.race"),
    # What the scripts that the documentation shows need.
    *("asyncio", "inturn.outbox", "sqlalchemy.ext.asyncio"),
)


class Forked:
    """A process that was forked for a command line; the same to its users as a `subprocess.Popen`.

    It stays a zombie until somebody waits for it: so its number is never another's.

    Args:
        args: the command line after `inturn`, or after the module.
        environment: its variables.
        descriptors: its standard streams.
        module: what is run in place of `inturn`, as by `python -m`.
    """

    def __init__(
        self, args: list[str], environment: Mapping[str, str], descriptors: list[int], module: str = ""
    ) -> None:
        self._pool = _pool()
        request = {
            "args": args,
            "environment": dict(environment),
            "directory": str(Path.cwd()),
            "module": module,
        }
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
        self._folder = tempfile.TemporaryDirectory(prefix="inturn-asked-")
        self.folder = Path(self._folder.name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door, theirs:
            door.bind(str(self.folder / "door"))
            door.listen()
            given = [theirs.fileno(), door.fileno()]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "support.forked", *map(str, given)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=given,
                env={**os.environ, "PYTHONPATH": str(TESTS)},
            )
        write_program(self.folder, str(self.folder / "door"))
        atexit.register(self._close)

    def ask(self, request: Mapping[str, object], descriptors: list[int] | None = None) -> int:
        socket.send_fds(self._ours, [json.dumps(request).encode()], descriptors or [])
        return int(self._ours.recv(100))

    def _close(self) -> None:
        self._ours.close()
        self._process.wait()
        self._folder.cleanup()


@cache
def _pool() -> _Pool:
    return _Pool()


def folder_of_inturn() -> Path:
    """Return the folder of an `inturn` that does what the installed one does, without its imports."""
    return _pool().folder


def folder_of_python() -> Path:
    """Return the folder of a `python` that runs scripts, of a file or of its standard input, in that way."""
    return folder_of_inturn() / SCRIPTS


def _serve(asked: socket.socket, door: Door) -> dict[str, Any]:
    """Fork for each request; return it in the child, ready to run what it asks for."""
    while True:
        for ready in select.select([asked, *door.all()], [], [])[0]:
            child = _answer(asked, door) if ready is asked else door.answer(ready)
            if child is not None:
                asked.close()
                door.close()
                become(*child, str(TESTS))
                return child[0]


def _answer(asked: socket.socket, door: Door) -> tuple[dict[str, Any], list[int]] | None:
    message, descriptors, _, _ = socket.recv_fds(asked, 1_000_000, 3)
    if not message:
        door.kill()
        os._exit(0)
    request = json.loads(message)
    if "wait" in request:
        asked.send(str(os.waitpid(request["wait"], 0)[1]).encode())
        return None
    pid = os.fork()
    if pid == 0:
        return request, descriptors
    for descriptor in descriptors:
        os.close(descriptor)
    asked.send(str(pid).encode())
    return None


def _run() -> NoReturn:
    for section in COMMANDS.values():
        for where, _ in section.values():
            importlib.import_module(where.partition(":")[0])
    for name in _LATER:
        importlib.import_module(name)
    gc.freeze()  # else each child, at its end, looks through all of it once more, and copies it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest
    asked, door = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    request = _serve(asked, Door(door))
    try:
        if request.get("module"):
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        elif request.get("script"):
            _run_script(request["args"])
        else:
            main()
        sys.exit(0)
    except SystemExit as end:
        _END.append(end.code)
        raise
    finally:
        # As Python does when it has run a file, before it says of what that ended.
        with suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()


def _run_script(words: list[str]) -> None:
    """Do what Python does with these words: the name of a script and its own, or none for standard input."""
    sys.argv = words or [""]
    if words:
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")
    else:
        sys.path.insert(0, "")
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(sys.stdin.read(), "<stdin>", "exec"), module.__dict__)


#: The exit code of the command, once it has ended.
_END: list[object] = []


def _end_at_once() -> None:
    """End here, without taking apart what was imported: it would all be copied, page by page.

    It is called after whatever else is to be done at the end, once all threads have ended.
    """
    if len(_END) == 1 and isinstance(_END[0], int):
        try:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
        except (OSError, ValueError):
            return  # Python has something to say of that
        os._exit(_END[0])


if __name__ == "__main__":
    atexit.register(_end_at_once)  # the first one is called last
    _run()
