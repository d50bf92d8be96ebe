"""Names: how turns, leases and the registry of appliers know the workers of a process."""

from __future__ import annotations

import os
import secrets
import socket

#: Of this process, and of one that it was forked from.
_starts: dict[int, str] = {}


def worker_name(number: int) -> str:
    """Return the name of a worker of this process: HOST:PID-START:NUMBER.

    START is random: another container may have its host's name, and 1 as the number of its process.
    """
    pid = os.getpid()
    start = _starts.setdefault(pid, secrets.token_hex(3))
    return f"{socket.gethostname()}:{pid}-{start}:{number}"
