"""A whole number, as an option takes it for a column of the database."""

from __future__ import annotations

from typing import Any

import click


class Whole(click.types.IntParamType):
    """Whole numbers of so many bits. For a larger one PostgreSQL finds no function that takes it.

    Not click's IntRange, which prints its bounds in the help of every such option.
    """

    def __init__(self, bits: int) -> None:
        self._most = 2 ** (bits - 1) - 1

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if abs(found) > self._most:
            self.fail(f"{value} is out of range: it goes from -{self._most} to {self._most}.", param, ctx)
        return found


INTEGER, BIGINT = Whole(32), Whole(64)
