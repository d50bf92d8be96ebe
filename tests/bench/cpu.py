"""The processor time of a server: of all its processes, those that have ended included."""

from __future__ import annotations

import os
from pathlib import Path

from support.server import Server

_TICKS = os.sysconf("SC_CLK_TCK")
#: Where `proc(5)` has them in /proc/PID/stat, after the name: utime and stime, then those of ended children.
_PARENT, _OWN, _ENDED = 1, slice(11, 13), slice(13, 15)


def seconds(server: Server) -> float:
    """Return how many seconds of a processor its processes have taken so far, to ten milliseconds."""
    first = (server.data / "postmaster.pid").read_text().split()[0]
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # The name may hold anything.
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended: its parent has it
            continue
        if process.name == first:
            ticks += sum(map(int, fields[_OWN])) + sum(map(int, fields[_ENDED]))
        elif fields[_PARENT] == first:
            ticks += sum(map(int, fields[_OWN]))
    return ticks / _TICKS
