"""A number of seconds on the command line."""

from __future__ import annotations

import click
import pytest

from inturn.cli.terminal.seconds import Seconds


def test_seconds_are_written_with_a_unit_or_without() -> None:
    written = {
        "0": 0, "1.5": 1.5, "1e3": 1000, "inf": float("inf"), "500ms": 0.5, "90s": 90, "90 s": 90,
        "10m": 600, "1.5h": 5400, "1d": 86400,
    }  # fmt: skip
    assert {text: Seconds(min=0).convert(text, None, None) for text in written} == written
    assert Seconds().convert(30.0, None, None) == 30


def test_what_is_no_time_is_refused_in_words() -> None:
    for text in ("", "m", "10 parrots", "10mm", "-10m", "10M", "ten", "1m30s"):
        with pytest.raises(click.BadParameter, match="is not a time: write seconds, or 500ms, 90s, 10m"):
            Seconds(min=0).convert(text, None, None)
    with pytest.raises(click.BadParameter, match="nan is not a number of seconds"):
        Seconds(min=0).convert("nan", None, None)
    with pytest.raises(click.BadParameter, match="not in the range"):
        Seconds(min=0.1, max=86400).convert("2d", None, None)
