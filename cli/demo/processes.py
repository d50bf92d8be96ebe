"""The demo's processes: started together, killed on demand, gone at the end however it comes.

Each reads on stdin one line of JSON, writes on stdout one line when it is ready, and ends when stdin does.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from inturn.cli.errors import Failure

_SECONDS_TO_START = 60.0


@dataclass(frozen=True, slots=True)
class Start:
    """What is to be started: a module, and what it is told."""

    module: str
    told: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Process:
    """One that runs.

    Attributes:
        said: its line.
    """

    said: str
    process: asyncio.subprocess.Process

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()


@asynccontextmanager
async def running(starts: Sequence[Start]) -> AsyncIterator[list[Process]]:
    """Run processes; they are ready when they are given, and gone at the end."""
    processes: list[asyncio.subprocess.Process] = []
    try:
        for start in starts:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", start.module),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the demo, which then ends them
            )
            processes.append(process)
            _tell(start, process)
        try:
            async with asyncio.timeout(_SECONDS_TO_START):
                ready = [await _wait(*started) for started in zip(starts, processes, strict=True)]
        except TimeoutError:
            raise Failure("the demo's processes did not start in time") from None
        yield ready
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*(process.communicate() for process in processes))


def _tell(start: Start, process: asyncio.subprocess.Process) -> None:
    """Tell a process what it is, by the pipe: arguments, and a password among them, are seen by all."""
    assert process.stdin is not None  # noqa: S101 - for mypy: it is a pipe
    process.stdin.write(json.dumps(start.told).encode() + b"\n")


async def _wait(start: Start, process: asyncio.subprocess.Process) -> Process:
    """Wait until a process is ready."""
    assert process.stdout is not None  # noqa: S101 - for mypy: it is a pipe
    line = await process.stdout.readline()
    if not line:
        raise Failure(f"a process of the demo did not start: {start.module}")
    return Process(line.decode().strip(), process)
