"""What a peer is to the measurement: a program that loads a database, and applies what is loaded."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg.conninfo import make_conninfo

from bench.peers.work import BEGIN, EFFECT_NUMBERED, Workload

Mode = Literal["load", "apply"]


class Unavailable(Exception):
    """A peer cannot be measured here; the text says why."""


@dataclass(frozen=True, slots=True)
class Job:
    """One load or one measurement, as its process gets it: JSON on the command line."""

    host: str
    port: int
    user: str
    database: str
    keys: int
    depth: int
    workers: int = 1
    seconds: float = 0.0
    begin: str = BEGIN
    effect: str = EFFECT_NUMBERED

    @property
    def dsn(self) -> str:
        return make_conninfo(host=self.host, port=str(self.port), user=self.user, dbname=self.database)

    @property
    def workload(self) -> Workload:
        return Workload("", self.keys, self.depth)

    def as_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


class Peer(ABC):
    """Something that applies commands in order per key."""

    name: str

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Return the packages that are measured, with their versions.

        Raises:
            Unavailable: it cannot be measured here.
        """

    @abstractmethod
    def command(self, mode: Mode, job: Job) -> list[str]:
        """Return the command line of a process that ends by itself.

        mode: load: install into the job's database and send its commands; apply: apply them.
        """


class PythonPeer(Peer):
    """A peer whose program is a module that calls `serve`."""

    def __init__(self, name: str, module: str, packages: Sequence[str], *arguments: str) -> None:
        self.name = name
        self._module = module
        self._packages = packages
        self._arguments = arguments

    def versions(self) -> dict[str, str]:
        try:
            return {name: importlib.metadata.version(name) for name in self._packages}
        except importlib.metadata.PackageNotFoundError as error:
            raise Unavailable(f"{error.name} is not installed") from error

    def command(self, mode: Mode, job: Job) -> list[str]:
        return [sys.executable, "-m", self._module, mode, job.as_json(), *self._arguments]


def serve(load: Callable[..., None], apply: Callable[..., None]) -> None:
    """Do what the command line of a PythonPeer asks for."""
    mode, text, *arguments = sys.argv[1:]
    job = Job(**json.loads(text))
    if mode == "load":
        load(job, *arguments)
        return
    with psycopg.connect(job.dsn, autocommit=True) as connection:
        connection.execute(BEGIN)
    apply(job, *arguments)


class Tally:
    """Counts what the workers of a process have done, and says when they are to end."""

    def __init__(self, job: Job) -> None:
        self._left = job.workload.commands
        self._end_at = time.monotonic() + job.seconds
        self._lock = threading.Lock()

    def count(self, commands: int) -> None:
        with self._lock:
            self._left -= commands

    @property
    def is_over(self) -> bool:
        return self._left <= 0 or time.monotonic() > self._end_at


class Pause:
    """How long a polling worker sleeps when it found nothing: 1 ms, then twice as long each time, to 100."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def after(self, found: int) -> float:
        """Return the seconds to sleep after so many commands were found."""
        self._seconds = 0.0 if found else min(max(self._seconds * 2, 0.001), 0.1)
        return self._seconds
