"""The threads of a process: daemons, so that none keeps it from its end."""

from __future__ import annotations

import threading
from collections.abc import Callable

from inturn.schema.errors import InturnError


class NoThread(InturnError):
    """The system gives the process no more threads."""


def start_thread(run: Callable[[], object], name: str) -> threading.Thread:
    """Start a thread and return it.

    Raises:
        NoThread: there is none to be had.
    """
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise NoThread(
            f"the system gives this process no thread for {name}",
            hint="Raise the limit of its user, unit or container (ulimit -u, TasksMax, --pids-limit)",
        ) from error
    return thread
