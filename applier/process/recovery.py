"""Recovery: what the connections of a process know together about a database that was lost."""

from __future__ import annotations

import threading

from inturn.applier.stop import Stop

_CHECK_STOP_SECONDS = 0.1


class Recovery:
    """Shared by the workers of a process: the first one that the database serves again wakes the others.

    Not one that is merely connected: a standby takes connections too, and refuses the work. There each would
    wake the others for another attempt, without a pause.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._times = 0

    @property
    def times(self) -> int:
        """How often a worker was served again."""
        return self._times

    def succeeded(self) -> None:
        """Say that the database serves again."""
        with self._condition:
            self._times += 1
            self._condition.notify_all()

    def wait(self, seconds: float, stop: Stop) -> None:
        """Wait until somebody is served again, a stop is requested, or the time is over."""
        with self._condition:
            seen = self._times
            while seconds > 0 and self._times == seen and not stop.requested:
                self._condition.wait(min(seconds, _CHECK_STOP_SECONDS))
                seconds -= _CHECK_STOP_SECONDS
