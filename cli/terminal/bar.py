"""A bar on stderr that shows how much of the work is done."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """Shown while its block runs, and gone afterwards.

    Args:
        doing: what is done, as "verifying".
        total: how much there is to do; more may come.
        shown: otherwise nothing is printed, not even the empty line with which rich ended a disabled one
            before 14.1.
    """

    def __init__(self, doing: str, total: int, *, shown: bool) -> None:
        self._progress = Progress(
            TextColumn(doing),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(doing, total=total)
        self._total = total
        self._shown = shown

    def __enter__(self) -> Bar:
        if self._shown:
            self._progress.start()
        return self

    def update(self, done: int) -> None:
        """Show that so much is done."""
        self._progress.update(self._task, completed=done, total=max(done, self._total))

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._progress.stop()
