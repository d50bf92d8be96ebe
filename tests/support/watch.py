"""Somebody who looks at the metrics again and again, and judges the alert rules by what he has seen."""

from __future__ import annotations

from collections.abc import Callable

from support.database import until
from support.monitoring import rule_queries
from support.promql import found
from support.scrape import Samples


class Watch:
    """Looks at one source of metrics. An alert fires where its rule finds something: it need not last.

    Args:
        look: gives the samples; none: nobody answers.
        patience: how long to wait for an alert, in seconds.

    Attributes:
        fired: the alerts that have fired so far.
    """

    def __init__(self, look: Callable[[], Samples], patience: float) -> None:
        self._look, self._patience = look, patience
        self._before: Samples = {}
        self.fired: set[str] = set()

    def firing(self) -> set[str]:
        """Look once; return the alerts that fire by this look and the one before."""
        now = self._look()
        firing = {name for name, query in rule_queries().items() if found(query, self._before, now)}
        self._before = now
        self.fired |= firing
        return firing

    def wait_fired(self, *alerts: str) -> None:
        """Look until each has fired: a rate may be over by the next look."""
        missing = {*alerts}

        def none_is_missing() -> bool:
            missing.difference_update(self.firing())
            return not missing

        try:
            until(none_is_missing, "the alerts fire", self._patience)
        except AssertionError as error:
            error.add_note(f"not fired: {missing}")
            raise

    def wait_clear(self, *but: str) -> None:
        """Look until none fires, but those that stay."""
        try:
            until(lambda: self.firing() == {*but}, "the alerts clear", self._patience)
        except AssertionError as error:
            error.add_note(f"firing: {self.firing()}")
            raise
