"""`inturn` for a shell, or for whoever starts a program by its path: it asks the process of `support.forked`.

A `python` that runs a script in the same way lies in a folder of its own, `scripts`, beside it.

It passes on all that a process is given: the words, the folder, the environment, the umask, the standard
streams, and the signals that are ignored; then the signals that it gets; at the end the exit code, or the
signal. When it is killed, so is the command. What Python reads when it starts is not passed on: with a
setting of that kind it becomes the installed program.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

INSTALLED = Path(sys.executable).with_name("inturn")
SCRIPTS = "scripts"
#: It imports next to nothing: a start of Python itself is most of what it costs.
_PROGRAM = """#!{python} -IS
import _signal, _socket, os, sys
SIGNALS = [getattr(_signal, "SIG" + n) for n in "HUP INT QUIT TERM USR1 USR2 ALRM WINCH CONT".split()]
def is_open(number):
    try: os.fstat(number)
    except OSError: return False
    return True
def run():
    streams = [n for n in range(3) if is_open(n)]
    ignored = [n for n in SIGNALS if _signal.getsignal(n) == _signal.SIG_IGN]
    umask = os.umask(0)
    os.umask(umask)
    numbers = (streams, ignored, [umask], [len(sys.argv) - 1], [{is_python:d}])
    parts = [" ".join(map(str, part)).encode() for part in numbers]
    parts += [os.getcwdb(), *map(os.fsencode, sys.argv[1:])]
    parts += [b"%s=%s" % each for each in os.environb.items()]
    asked = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    asked.connect({address!r})
    for number in SIGNALS:
        if number not in ignored:
            _signal.signal(number, lambda number, _: asked.send(b"%d" % number))
    rights = b"".join(n.to_bytes(4, sys.byteorder) for n in streams)
    asked.sendmsg([b"\\0".join(parts)], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    return int(asked.recv(100) or 71 << 8)
try: status = -1 if {is_python} and sys.argv[1:2] and sys.argv[1].startswith("-") else run()
except OSError: status = -1
if status == -1: os.execv({installed!r}, [{installed!r}, *sys.argv[1:]])
if os.WIFSIGNALED(status):
    _signal.signal(os.WTERMSIG(status), _signal.SIG_DFL) if os.WTERMSIG(status) != _signal.SIGKILL else None
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.waitstatus_to_exitcode(status))
"""
#: What Python reads when it starts, and does here too.
DONE_HERE = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}


def write_program(folder: Path, address: str) -> None:
    """Write the programs into a folder, to ask at this address."""
    scripts = folder / SCRIPTS
    scripts.mkdir()
    for program, installed in ((folder / "inturn", str(INSTALLED)), (scripts / "python", sys.executable)):
        named = {"installed": installed, "is_python": installed == sys.executable}
        program.write_text(_PROGRAM.format(python=sys.executable, address=address, **named), "utf-8")
        program.chmod(0o755)


class Door:
    """Where those programs ask: it forks for each, gives signals on, and says how it ended."""

    def __init__(self, door: socket.socket) -> None:
        self._door = door
        self._asking: dict[socket.socket, int | None] = {}  # → the process of its command
        self._ends: dict[int, tuple[int, socket.socket]] = {}  # descriptor of a process → it, who asked

    def all(self) -> list[socket.socket | int]:
        """Return what it waits for."""
        return [self._door, *self._asking, *self._ends]

    def answer(self, ready: socket.socket | int) -> tuple[dict[str, Any], list[int]] | None:
        """Do what there is to do; in the process of a command, return what was asked, and its descriptors."""
        if isinstance(ready, int):
            self._end(ready)
        elif ready is self._door:
            self._asking[self._door.accept()[0]] = None
        elif ready in self._asking:  # otherwise it has ended meanwhile
            pid = self._asking[ready]
            if pid is None:
                return self._start(ready)
            said = ready.recv(100)
            if not said:
                del self._asking[ready]
            os.kill(pid, int(said or signal.SIGKILL))
        return None

    def _start(self, asking: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
        message, descriptors, _, _ = socket.recv_fds(asking, 1_000_000, 3)
        if not message:  # killed before it has asked
            self._forget(asking)
            return None
        request = _read(message)
        if not is_as_here(request["environment"]):
            asking.send(b"-1")
            self._forget(asking)
        elif (pid := os.fork()) == 0:
            return request, descriptors
        else:
            self._asking[asking] = pid
            self._ends[os.pidfd_open(pid)] = pid, asking
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def _end(self, end: int) -> None:
        pid, asking = self._ends.pop(end)
        os.close(end)
        status = os.waitpid(pid, 0)[1]
        with suppress(OSError):  # it was killed
            asking.send(str(status).encode())
        self._forget(asking)

    def _forget(self, asking: socket.socket) -> None:
        self._asking.pop(asking, None)
        asking.close()

    def kill(self) -> None:
        """Kill the commands that run."""
        for pid, _ in self._ends.values():
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Close everything, in the process of a command."""
        for each in self.all():
            os.close(each) if isinstance(each, int) else each.close()


def _read(message: bytes) -> dict[str, Any]:
    streams, ignored, umask, count, is_python, directory, *rest = message.split(b"\0")
    args, environment = rest[: int(count)], rest[int(count) :]
    return {
        "streams": [int(number) for number in streams.split()],
        "ignored": [int(number) for number in ignored.split()],
        "umask": int(umask),
        "script": bool(int(is_python)),
        "directory": os.fsdecode(directory),
        "args": [os.fsdecode(word) for word in args],
        "environment": dict(os.fsdecode(each).split("=", 1) for each in environment),
    }


def is_as_here(environment: Mapping[str, str]) -> bool:
    """Whether Python would start with these variables as it has started here."""
    named = {name for name in environment if name.startswith("PYTHON")} - DONE_HERE
    return not named and _locale(environment) == _locale(os.environ)


def _locale(environment: Mapping[str, str]) -> str:
    """Return the locale that these variables make, in which Python puts UTF-8 for ASCII."""
    named = next(filter(None, map(environment.get, ("LC_ALL", "LC_CTYPE", "LANG"))), "C")
    return "C.UTF-8" if named in {"C", "POSIX"} and not environment.get("LC_ALL") else named


def become(request: Mapping[str, Any], descriptors: list[int], tests: str) -> None:
    """Make this process one that was started as asked.

    tests: the folder that Python finds the tests' modules in, where PYTHONPATH names it.
    """
    streams = request.get("streams", [0, 1, 2])
    for number, descriptor in zip(streams, descriptors, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number in {0, 1, 2} - {*streams}:
        os.close(number)
    if "umask" in request:
        os.umask(request["umask"])
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [str(INSTALLED), *request["args"]]
    sys.path[:] = [
        *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
        *(folder for folder in sys.path if folder != tests),
    ]
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    for number in request.get("ignored", []):
        signal.signal(number, signal.SIG_IGN)
    if signal.SIGINT not in request.get("ignored", []):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _open_streams(streams)


def _open_streams(streams: list[int]) -> None:
    """Open the standard streams as Python does: by lines on a terminal, otherwise by blocks."""
    at_once = bool(os.environ.get("PYTHONUNBUFFERED"))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        there = getattr(sys, f"__{name}__")
        stream = None
        if number in streams:
            size = 0 if number and at_once else -1
            raw = open(number, "wb" if number else "rb", size, closefd=False)  # noqa: SIM115
            stream = io.TextIOWrapper(
                raw,
                encoding=there.encoding,
                errors=there.errors,
                line_buffering=number == 2 or (number == 1 and os.isatty(1)),
                write_through=at_once,
            )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
