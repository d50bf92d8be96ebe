"""Callers in the background: a pgbench that appends until its block is left."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.database import Database

from bench import pgbench

_PROGRESS = re.compile(r"^progress: ([0-9.]+) s, ([0-9.]+) tps", re.MULTILINE)
#: How long pgbench may take to end, in seconds.
_PATIENCE = 30.0


def append_script(topic: str, keys: int, *, prefix: str = "active") -> str:
    """Return a script that appends a command to any of so many keys."""
    return (
        f"\\set k random(1, {keys})\n"
        f"SELECT inturn.append('{topic}', '{prefix}' || :k, 'insert', '{{\"amount\": 1}}');\n"
    )


class Callers:
    """A pgbench at work, which tells every second how much it has done."""

    def __init__(self, process: subprocess.Popen[str], said: Path) -> None:
        self._process = process
        self._said = said

    def check(self) -> None:
        """Make sure that they are at work.

        Raises:
            RuntimeError: they are not.
        """
        said = self._said.read_text()
        if self._process.poll() is not None or "aborted" in said:
            raise RuntimeError(f"pgbench has failed, or has ended too early:\n{said}")

    def seconds(self) -> list[tuple[float, float]]:
        """Return for each second so far when it ended, by time.time(), and how many transactions it had."""
        return [(float(at), float(number)) for at, number in _PROGRESS.findall(self._said.read_text())]


@contextmanager
def at_call(
    database: Database, script: str, *, clients: int, seconds: float, each_second: float | None = None
) -> Iterator[Callers]:
    """Run callers while the block runs.

    Args:
        seconds: the longest that the block may take.
        each_second: how many transactions all of them shall make; None: as many as they can.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, said = Path(folder, "script.sql"), Path(folder, "said")
        file.write_text(script)
        command = pgbench.command(
            database, str(file), clients=clients, seconds=int(seconds) + 1, protocol="prepared"
        )
        more = ["--progress=1", "--progress-timestamp"]
        if each_second is not None:
            more.append(f"--rate={each_second}")
        with said.open("w") as out:
            process = subprocess.Popen(
                [*command[:-1], *more, command[-1]], stdout=out, stderr=out, cwd="/", text=True
            )
        callers = Callers(process, said)
        try:
            yield callers
            callers.check()
        finally:
            process.terminate()
            process.wait(_PATIENCE)
