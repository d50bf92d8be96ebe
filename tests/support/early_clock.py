"""An application whose process's clock is an hour early: `inturn apply --app support.early_clock:applier`."""

from __future__ import annotations

import time

from inturn.applier import Applier

_time = time.time
time.time = lambda: _time() + 3600

applier = Applier()
