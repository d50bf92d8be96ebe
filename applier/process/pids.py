"""Whether the process is gone that had a number: it may belong to another one by now, or to nobody."""

from __future__ import annotations

import os
import time
from pathlib import Path

#: Of what /proc/PID/stat says after the name: the state, and when the process began, in ticks since the boot.
_STATE, _BEGAN = 0, 19
#: It has ended, and only its number is left: nobody has asked yet how it ended.
_ENDED = {b"Z", b"X"}
#: Measuring takes time, and clocks differ: a process that seems younger by less than this may be the same.
_NO_YOUNGER_SECONDS = 2.0


def is_gone(pid: int, seconds: float) -> bool:
    """Return whether the process is gone that had this number so many seconds ago, as far as can be told."""
    if os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False  # somebody else's
    try:
        said = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()  # a name holds anything
        began = int(said[_BEGAN]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError, IndexError, ValueError):
        return False  # only Linux tells
    return said[_STATE] in _ENDED or age < seconds - _NO_YOUNGER_SECONDS
