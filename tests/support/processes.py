"""`inturn apply --processes`: who its processes are, and two of them with a command in hand each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil  # type: ignore[import-untyped]  # it ships no types

from inturn.cli.run.serve import Options
from support.database import Database, until
from support.process import InturnProcess, inturn_apply
from support.shop import append, wait_at_gate

TWO = ("--processes", "2")


def children_of(pid: int) -> list[psutil.Process]:
    """Return the processes that a parent runs, in the order of their numbers."""
    found = []
    for each in psutil.Process(pid).children():
        try:
            words = each.cmdline()
        except psutil.NoSuchProcess:  # it ended meanwhile; so says a zombie too
            continue
        if "inturn.cli.run.child" in words:
            found.append((words[words.index("inturn.cli.run.child") + 1], each))
    return [each for _, each in sorted(found, key=lambda pair: pair[0])]


def is_there(process: psutil.Process) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_gone(children: list[psutil.Process]) -> None:
    """Wait for the end of processes, whoever their parent is by now."""
    until(lambda: not any(map(is_there, children)), "the end of every process")


def wait_serving(database: Database, count: int = 2) -> list[int]:
    """Wait until so many processes serve; return their pids."""

    def serving() -> list[int]:
        rows = database.execute("SELECT DISTINCT pid FROM inturn.applier ORDER BY pid")
        return [pid for (pid,) in rows] if len(rows) >= count else []

    found: list[int] = until(serving, f"{count} processes at work")
    return found


def applying_pid(database: Database, backend: int) -> int:
    """Return the process that has this session of the database."""
    pid: int = database.value("SELECT pid FROM inturn.applier WHERE backend_pid = %s", [backend])
    return pid


@contextmanager
def both_busy(database: Database, *args: str) -> Iterator[InturnProcess]:
    """Run two processes; in the block each has one of the keys a and b in hand. The gate is shut."""
    append(database, "a", "after")
    append(database, "b", "after")
    with inturn_apply(database.dsn, *TWO, "--max-keys", "1", *args) as process:
        wait_at_gate(database, 2)
        yield process


def one_line(err: str, said: str) -> str:
    """Return the one line that is no mere information, and says that."""
    lines = [line for line in err.splitlines() if " info " not in line]
    assert len(lines) == 1, err
    assert said in lines[0]
    assert "Traceback" not in err
    return lines[0]


def options(dsn: str) -> Options:
    """Return what was asked of `inturn apply`: one worker, without handlers, with a minute of grace."""
    return Options(
        dsn=dsn,
        schema="inturn",
        app=None,
        topics=(),
        workers=1,
        max_keys=1,
        http_timeouts=(1.0, 1.0, 1.0),
        drain=False,
        prepare=True,
        max_seconds=None,
        grace=60.0,
        log_format="text",
        quiet=False,
    )
