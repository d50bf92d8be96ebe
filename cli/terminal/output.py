"""What commands print: tables that hold on a terminal of 80 columns, and JSON."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate, zip_longest
from math import isfinite
from typing import Any, Literal

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

_GAP = 2
_LEAST = 8
#: Of a terminal that does not say how wide it is; and the least that is reckoned with.
_WIDTH, _NARROWEST = 80, 20
#: Python's own limit is about twice that, for reading and for writing.
_DEEPEST = 500
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_STYLES = {
    "held": "bold red",
    "waiting": "red",
    "missing": "red",
    "retrying": "yellow",
    "paused": "cyan",
    "topic": "cyan",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        heading: its heading.
        right: align to the right, for numbers.
        cut: where a cell may be cut when the terminal is too narrow; None: never.
        whole: a cell that was cut is printed whole below its row, to be given back.
    """

    heading: str
    right: bool = False
    cut: Literal["middle", "end"] | None = None
    whole: bool = False


class Ours(str):
    """Text of which every value was escaped, with codes for colours or line ends of ours between."""

    __slots__ = ()


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a line. What a terminal could take for a command, or for another line, is printed as an escape.

    Everything that the commands print for people goes through here, so that none of it has to be trusted.

    Args:
        text: one line, whatever it holds; or Ours, as it is.
        err: to stderr.
        nl: end the line.
    """
    click.echo(visible(str(text) if not isinstance(text, Ours) else text), err=err, nl=nl)


def echo_all(lines: Iterable[str], *, err: bool = False) -> None:
    """Print lines, each by `echo`."""
    for line in lines:
        echo(line, err=err)


def visible(line: str) -> str:
    """Return a line as `echo` prints it."""
    return line if isinstance(line, Ours) else escape(line)


def escape(text: str) -> str:
    """Return text with everything that is not plainly visible as an escape, like `\\x1b` or `\\n`.

    So is what stdout's encoding does not have: it would be escaped after widths were counted.
    """
    if text.isprintable() and _is_encodable(text):
        return text
    return "".join(c if c.isprintable() and _is_encodable(c) else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _is_encodable(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def first_line(text: str | None) -> str:
    """Return the first line that says something, empty for None."""
    return next((line.strip() for line in (text or "").splitlines() if line.strip()), "")


def age(seconds: float | None) -> str:
    """Return a span of time in seconds as people say it: 12s, 3m, 2h, 5d; empty for None."""
    if seconds is None:
        return ""
    whole = max(0, int(seconds))
    for unit, length in (("d", _DAY), ("h", _HOUR), ("m", _MINUTE)):
        if whole >= length:
            return f"{whole // length}{unit}"
    return f"{whole}s"


def duration(seconds: float) -> str:
    """Return a short span of time in seconds: 3ms, 1.5s, 2m."""
    if seconds < 1:
        return f"{max(0, seconds) * 1000:.0f}ms"
    return f"{seconds:.1f}s" if seconds < _MINUTE else age(seconds)


def print_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
    notes_heading: str = "error",
) -> None:
    """Print a table: on a terminal as wide as that is; elsewhere uncut and plain.

    Args:
        columns, rows: the table.
        notes: one a row, empty for none: what went wrong with it. On a terminal a note has a line of
            its own below the row, elsewhere it is the row's last column.
        notes_heading: what that column is called.
    """
    echo_all(table_lines(columns, rows, notes, notes_heading))


def table_lines(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
    notes_heading: str = "error",
) -> list[Ours]:
    """Return the lines that `print_table` prints; on a terminal with its codes for colours."""
    width = terminal_width()
    if any(notes) and width is None:
        columns = [*columns, Column(notes_heading)]
        rows = [[*row, note] for row, note in zip(rows, notes, strict=True)]
    cells = [[escape(cell) for cell in row] for row in rows]
    widths = [
        max(cell_len(text) for text in (column.heading, *(row[i] for row in cells)))
        for i, column in enumerate(columns)
    ]
    gap = _GAP if width is None else _shrink(columns, widths, width)
    # Where it is still too wide the terminal breaks the lines: no number is cut.
    total = sum(widths) + gap * len(columns)
    console = Console(highlight=False, width=total, force_terminal=width is not None)
    with console.capture() as printed:
        console.print(_table(columns, cells, widths, gap))
    heading, *printed_rows = printed.get().splitlines()
    lines = [heading.rstrip()]
    for line, row, note in zip_longest(printed_rows, cells, () if width is None else notes, fillvalue=""):
        lines.append(line.rstrip())
        lines += [
            f"  {text}"
            for column, text, most in zip(columns, row, widths, strict=False)
            if column.whole and cell_len(text) > most
        ]
        if note and width is not None:
            lines.append("  " + _shorten_words(escape(note), width - 2))
    return [Ours(line) for line in lines]


def terminal_width() -> int | None:
    """Return how many cells a line on stdout has; None where it is not a terminal, FORCE_COLOR or not."""
    return max(Console().width or _WIDTH, _NARROWEST) if sys.stdout.isatty() else None


def _table(columns: Sequence[Column], cells: list[list[str]], widths: list[int], gap: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        table.add_column(
            column.heading,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=width,
        )
    for row in cells:
        table.add_row(*map(_cell, columns, row, widths))
    return table


def _cell(column: Column, text: str, width: int) -> Text:
    style = _STYLES.get(text.partition(" ")[0], "") if column.heading in ("state", "outcome") else ""
    return Text(shorten(text, width, column.cut or "end"), style=style)


def _shrink(columns: Sequence[Column], widths: list[int], width: int) -> int:
    """Take what is over the width from the columns that may be cut, the widest first; return the gap."""
    between = len(columns) - 1
    least = sum(
        min(each, _LEAST) if column.cut else each for column, each in zip(columns, widths, strict=True)
    )
    gap = _GAP if least + _GAP * between <= width else 1
    for _ in range(sum(widths) + gap * between - width):
        cuttable = [i for i, column in enumerate(columns) if column.cut and widths[i] > _LEAST]
        if not cuttable:
            break
        widths[max(cuttable, key=widths.__getitem__)] -= 1
    return gap


def _shorten_words(text: str, width: int) -> str:
    """Return a sentence in at most `width` terminal cells, cut after a word unless that is very long."""
    cut = shorten(text, width)
    if cut == text or text[len(cut) - 1] == " ":
        return cut
    words = cut.rpartition(" ")[0]
    return words + cut[-1] if cell_len(words) * 3 > width * 2 else cut


def shorten(text: str, width: int, cut: Literal["middle", "end"] = "end") -> str:
    """Return text in at most `width` terminal cells, an ellipsis where some was cut out."""
    if cell_len(text) <= width:
        return text
    ellipsis = "…" if _is_encodable("…") else "~"
    tail = (width - 1) // 2 if cut == "middle" else 0
    end = set_cell_size(text[::-1], tail)[::-1] if tail else ""
    return set_cell_size(text, width - 1 - tail) + ellipsis + end


def print_json(document: Any) -> None:
    """Print one JSON document; times as ISO 8601 in UTC, everything but visible ASCII escaped."""
    echo(Ours(json.dumps(document, indent=2, default=_json).replace("\x7f", "\\u007f")))


def _json(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    raise TypeError(f"no JSON for {type(value).__name__}")


def load_payload(text: str) -> Any:
    """Return JSON that the database gave as text; what Python does not take stays text.

    That is a number out of its range, and the whole where it is nested over 500 deep.
    """
    return text if _is_deep(text) else json.loads(text, parse_float=_number(float), parse_int=_number(int))


def _is_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= _DEEPEST:
        return False
    steps = ((c in "[{") - (c in "]}") for c in _STRING.sub("", text))
    return max(accumulate(steps), default=0) > _DEEPEST


def _number(kind: Callable[[str], float]) -> Callable[[str], float | str]:
    def read(text: str) -> float | str:
        try:
            number = kind(text)
        except ValueError:
            return text
        return number if isinstance(number, int) or isfinite(number) else text

    return read
