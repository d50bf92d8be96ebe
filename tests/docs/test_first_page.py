"""README.md, which most readers see alone, and how long a page may be."""

from __future__ import annotations

import re

from support.place import DOCS, ROOT


def test_the_first_page_is_short_and_says_what_is_promised_and_what_is_not_early() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1500
    places = [
        text.index(words) for words in ("**The promise.**", "\n$ inturn ", "\n## Limits", "\n$ make demo")
    ]
    assert places == sorted(places)


def test_a_how_to_is_read_in_one_sitting() -> None:
    words = {
        page.name: len(re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL).split())
        for page in (DOCS / "how-to").glob("*.md")
    }
    assert {name: count for name, count in words.items() if count > 1500} == {}
