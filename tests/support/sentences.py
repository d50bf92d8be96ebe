"""One sentence a line in the docs: `PYTHONPATH=tests python -m support.sentences` breaks the lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from support.place import ROOT

_END = re.compile(r"(?<=[.!?])(?P<close>[\"')*_`]*) (?=[A-Z`\[*(\"'])(?!\* )")
#: Abbreviations, numbers of a list; and a heading that runs in: it stays before its first sentence.
_NO_END = re.compile(r"(?:\b(?:e\.g|i\.e|vs|etc)\.|\b[A-Z]\.|^\W*\d+\.|\.\.\.|…|^\*+[^*]+\*+)$")
_LEAD = re.compile(r"^\s*(?:(?:[-*]|\d+\.) )?")


def pages() -> list[Path]:
    """Return the pages that are written so; a line of the changelog is a change."""
    return [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "schema/sql/README.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]


def broken(page: str) -> str:
    """Return a page with one sentence a line; code, tables and comments stay as they are."""
    return "\n".join(line for block in _blocks(page.split("\n")) for line in block)


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    in_code = in_comment = False
    for line in lines:
        fence = line.lstrip().startswith("```")
        in_code ^= fence
        in_comment = in_comment or line.startswith("<!--")
        if in_code or fence or in_comment or line.startswith(("|", "    ", "<", "#")):
            in_comment = in_comment and "-->" not in line
            yield [line]
            continue
        match = _LEAD.match(line)
        lead = match.group() if match else ""
        first, *others = _sentences(line.removeprefix(lead))
        yield [lead + first, *(" " * len(lead) + other for other in others)]


def _sentences(text: str) -> list[str]:
    """Split at the ends of sentences, not within code or the target of a link."""
    masked = re.sub(r"`[^`]*`|\]\([^)]*\)", lambda found: "`" + "x" * (len(found.group()) - 2) + "`", text)
    sentences, start = [], 0
    for end in _END.finditer(masked):
        if not _NO_END.search(masked[start : end.end("close")]):
            sentences.append(text[start : end.end("close")])
            start = end.end()
    return [*sentences, text[start:]]


if __name__ == "__main__":
    for path in pages():
        path.write_text(broken(path.read_text("utf-8")), "utf-8")
