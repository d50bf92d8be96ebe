"""What a measure found: a table, for the terminal and as Markdown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table


@dataclass(slots=True)
class Section:
    """The table of one measure.

    Attributes:
        title: what was measured.
        headings: of the columns; the first names the work, the others are numbers.
        rows: as many cells as headings each.
        notes: what a reader has to know to judge the figures.
        plots: pictures of the same.
    """

    title: str
    headings: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plots: list[Path] = field(default_factory=list)

    def table(self) -> Table:
        """Return the table for a terminal."""
        table = Table(title=self.title, title_justify="left")
        for number, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self, command: str, folder: Path) -> str:
        """Return the table as Markdown, with the command that makes it; pictures are linked from folder."""
        lines = [f"## {self.title}", "", f"Made by `{command}`.", ""]
        lines += [f"| {' | '.join(self.headings)} |", f"|---|{'---:|' * (len(self.headings) - 1)}"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        for plot in self.plots:
            lines += ["", f"![{self.title}]({os.path.relpath(plot, folder)})"]
        return "\n".join(lines) + "\n"


def rate(value: float) -> str:
    return f"{value:,.0f}"


def ratio(value: float, base: float) -> str:
    """Return value / base; nothing when there is no base."""
    return f"{value / base:.2f}" if base else ""
