"""SuspectLooks: whether a drain goes on for keys that were put off, because an applier was lost with them."""

from __future__ import annotations

from inturn.applier.calls.appliers import Suspects


class SuspectLooks:
    """The looks of one worker, when it found nothing ready: see the SQL function _next_suspect.

    Attributes:
        began_at: when the drain began, by the database's clock; None: it has not.
        since: when it looked last, by the same clock; given to the next look.
    """

    def __init__(self) -> None:
        self.began_at: str | None = None
        self.since: str | None = None

    def seconds_to_claim(self, found: Suspects) -> float | None:
        """Return how long to wait before the next claim, by what was found; None: the drain may end."""
        is_first, self.since = self.since is None, found.looked_at
        # Only a claim after a first look tells those that are ready from those in somebody else's hands.
        return found.due if found.due is not None or not is_first else 0.0
