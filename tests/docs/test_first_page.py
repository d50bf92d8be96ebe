"""README.md, which most readers see alone."""

from __future__ import annotations

from support.place import ROOT


def test_the_first_page_is_short_and_says_what_is_promised_and_what_is_not_early() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1500
    places = [
        text.index(words) for words in ("**The promise.**", "\n$ inturn ", "\n## Limits", "\n$ make demo")
    ]
    assert places == sorted(places)
