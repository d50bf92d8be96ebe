"""The help of every command in docs/reference/cli.md: `python -m support.command_help` writes it there."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
from click.testing import CliRunner

from inturn.cli.main import cli
from support.place import DOCS

PAGE = DOCS / "reference" / "cli.md"


def helps() -> dict[str, str]:
    """Return command line → help, of each command, in the order of the help."""
    shown = {}
    for words in commands(cli, ("inturn",)):
        result = CliRunner().invoke(cli, [*words[1:], "--help"], prog_name="inturn", terminal_width=80)
        shown[" ".join(words)] = result.output
    return shown


def rewritten(page: str, real: dict[str, str]) -> str:
    """Return the page with today's help in each of its blocks."""
    return re.sub(
        r"(?<=<!-- help: )([^>]+)( -->\n```text\n).*?^(?=```$)",
        lambda block: block[1] + block[2] + real.get(block[1], ""),
        page,
        flags=re.MULTILINE | re.DOTALL,
    )


def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Give a command and all below it, each as the words that name it."""
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, (*words, name))


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(), helps()))
