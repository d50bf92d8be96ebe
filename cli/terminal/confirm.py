"""A question on the terminal, which is answered by yes or no."""

from __future__ import annotations

import click

from inturn.cli.errors import Failure


def confirm(question: str, *, default: bool = False) -> None:
    """Ask, and return if the answer is yes.

    Raises:
        Failure: it is no.
        click.Abort: there is none, but Ctrl-C or Ctrl-D.
    """
    if not click.confirm(question, default=default, err=True):
        raise Failure("nothing was changed: you answered no")
