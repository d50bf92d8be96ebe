"""Pictures of rates over time, by matplotlib, which only this needs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path


def rates(path: Path, title: str, lines: Mapping[str, Sequence[float]], interval: float) -> bool:
    """Draw a line for each series of rates, of so many seconds each, as SVG.

    Series whose names differ only after the colon share a colour; those that are applied are dashed.

    Returns:
        Whether it was drawn: False where matplotlib is not installed.
    """
    try:
        # By name: the types are the same for mypy whether it is installed or not.
        figures = importlib.import_module("matplotlib.figure")
    except ImportError:
        return False
    figure = figures.Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    colours: dict[str, str] = {}
    for name, series in lines.items():
        colour = colours.setdefault(name.partition(":")[0], f"C{len(colours)}")
        style = "--" if name.endswith("applied") else "-"
        times = [(number + 1) * interval for number in range(len(series))]
        axes.plot(times, series, label=name, color=colour, linestyle=style)
    axes.set(title=title, xlabel="seconds since the snapshot", ylabel="commands/s")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
    return True
