"""What initdb makes: once a run, and copied for each server, which takes a tenth of the time.

A copy has the system identifier of the others: what tells servers apart by it needs one that is made anew.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

#: The variable that names the folder of the run, for its workers.
FOLDER = "INTURN_TEST_INITDB"


def init_once(data: Path, version: int, init: Callable[[], None]) -> None:
    """Fill a server's folder.

    Args:
        data: the folder.
        version: of PostgreSQL.
        init: runs initdb there, where that has not been done, and sees to permissions.
    """
    if FOLDER not in os.environ:
        init()
        return
    made = Path(os.environ[FOLDER]) / str(version)
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_first = not made.exists()
        if is_first:
            init()
            new = made.with_suffix(".new")
            _copy(data, new)
            new.rename(made)
    if not is_first:
        _copy(made, data)
        init()


def _copy(one: Path, other: Path) -> None:
    """Copy a folder, with whom its files belong to."""
    other.mkdir(exist_ok=True)
    subprocess.run(["cp", "--archive", f"{one}/.", str(other)], check=True)
