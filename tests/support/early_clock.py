"""An application whose process's clock is an hour early: `inturn apply --app support.early_clock:applier`."""

from __future__ import annotations

import time

from inturn.applier import Applier

_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + 3600
# From Python 3.13 on, logging asks this one.
time.time_ns = lambda: _time_ns() + 3600 * 10**9

applier = Applier()
