"""A number of seconds, as an option takes it."""

from __future__ import annotations

import math
import re
from typing import Any

import click

_SPAN = re.compile(r"(?P<number>\d+(?:\.\d+)?) ?(?P<unit>ms|s|m|h|d)", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Seconds(click.FloatRange):
    """A range of numbers, also written as 500ms, 90s, 10m, 2h or 1d.

    It does not contain NaN, which is neither above nor below anything.
    """

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        span = _SPAN.fullmatch(value) if isinstance(value, str) else None
        try:
            number = float(span["number"]) * _UNITS[span["unit"]] if span else float(value)
        except ValueError:
            self.fail(f"{value!r} is not a time: write seconds, or 500ms, 90s, 10m, 2h, 1d.", param, ctx)
        if math.isnan(number):
            self.fail("nan is not a number of seconds.", param, ctx)
        return super().convert(number, param, ctx)
