"""The figures as tables for the terminal, and as a page's fragment in Markdown."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from rich.table import Table

from bench.peers.measure import Measured

#: Whose rate the others are compared with: its handlers run in the client, as theirs do.
BASE = "inturn, Python target"
_COLUMNS = ("workers", "by", "commands/s", "inturn / it", "applied", "out of order")


def tables(rows: Sequence[Measured]) -> Iterator[Table]:
    """Give a table of 89 columns for each load."""
    for name, of_load in itertools.groupby(rows, lambda row: row.workload.name):
        table = Table(title=f"{name}: {_commands(rows, name)}", title_justify="left")
        for column in _COLUMNS:
            table.add_column(column, justify="left" if column == "by" else "right")
        for workers, together in itertools.groupby(of_load, lambda row: row.workers):
            table.add_section()
            for number, row in enumerate(together):
                table.add_row("" if number else str(workers), *_cells(row, rows))
        yield table


def fragment(rows: Sequence[Measured], facts: Sequence[str]) -> str:
    """Return the same as one table in Markdown, below what was measured with what."""
    lines = [f"- {fact}" for fact in facts]
    lines += ["", "| " + " | ".join(("work", *_COLUMNS)) + " |", "|---|---:|---|---:|---:|---:|---:|"]
    for row in rows:
        lines.append("| " + " | ".join((row.workload.name, str(row.workers), *_cells(row, rows))) + " |")
    found = notes(rows)
    return "\n".join(lines + ([""] if found else []) + [f"- {note}" for note in found]) + "\n"


def notes(rows: Sequence[Measured]) -> list[str]:
    """Return what could not be measured, or went wrong, and why; once where it is the same in all loads."""
    why: dict[tuple[str, str], list[Measured]] = {}
    for row in rows:
        if row.reason:
            why.setdefault((row.peer, row.reason), []).append(row)
    found = []
    for (peer, reason), affected in why.items():
        of_all = len(affected) == sum(row.peer == peer for row in rows)
        where = "" if of_all else "; ".join(f"{row.workload.name} by {row.workers}" for row in affected)
        what = "not measured" if all(row.rate is None for row in affected) else "went wrong"
        found.append(f"{peer}: {what}{f' ({where})' if where else ''}: {reason}")
    return found


def ratio(row: Measured, rows: Sequence[Measured]) -> str:
    """Return how many times as fast inturn's Python target was with the same work, or nothing."""
    same = (row.workload, row.workers, BASE)
    base = next((base for base in rows if (base.workload, base.workers, base.peer) == same), None)
    if base is None or not base.rate or not row.rate:
        return ""
    found = base.rate / row.rate
    return f"{found:,.0f}" if found >= 10 else f"{found:.1f}" if found >= 1 else f"{found:.2f}"


def _cells(row: Measured, rows: Sequence[Measured]) -> tuple[str, ...]:
    if row.rate is None:
        return row.peer, "-", "", "", ""
    part = row.done / row.workload.commands
    applied = "all" if part >= 1 else f"{part:.0%}" if part >= 0.1 else f"{part:.1%}"
    return row.peer, f"{row.rate:,.0f}", ratio(row, rows), applied, f"{row.out_of_order:,}"


def _commands(rows: Sequence[Measured], name: str) -> str:
    load = next(row.workload for row in rows if row.workload.name == name)
    return f"{load.commands:,} commands, {load.keys:,} {'key' if load.keys == 1 else 'keys'}"
