"""A text as its user's editor leaves it; what was written there is not lost."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from inturn.cli.errors import Failure
from inturn.cli.terminal.confirm import confirm
from inturn.cli.terminal.key_text import quoted
from inturn.cli.terminal.output import echo, escape
from inturn.schema.advice import one_line
from inturn.schema.errors import InturnError

_INSTEAD = "Name a program that edits a file by EDITOR, or give the payload: --payload JSON"


@contextmanager
def edited(text: str, check: Callable[[str], None], *, keep: bool = False) -> Iterator[str]:
    """Yield the payload as the user's editor leaves it.

    What was written is kept in a file, which is named on stderr, if the block fails or the editor does.

    Args:
        text: the payload as it is.
        check: raises an InturnError for what cannot be one; then the editor comes up again.
        keep: name the file in any case.

    Raises:
        Failure: nothing was changed.
        InturnError: what `check` raised, where nobody can be asked.
    """
    descriptor, name = tempfile.mkstemp(prefix="inturn-", suffix=".json")
    path = Path(name)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{text}\n")
    done = False
    try:
        yield _written(path, text, check)
        done = not keep
    finally:
        if done or not _is_changed(path, text):
            path.unlink(missing_ok=True)
        else:
            echo(f"inturn: what you wrote is kept, to be given by: --payload - < {quoted(name)}", err=True)


def _written(path: Path, text: str, check: Callable[[str], None]) -> str:
    if not sys.stdin.isatty() and not any(map(os.environ.get, ("VISUAL", "EDITOR"))):
        raise Failure("there is no terminal for an editor", hint=_INSTEAD)
    while True:
        try:
            click.edit(filename=str(path))
        except click.ClickException as error:
            raise Failure(error.format_message(), hint=_INSTEAD) from error
        if not _is_changed(path, text):
            raise Failure("the payload was not changed in the editor", hint="Nothing was done")
        written = _read(path)
        try:
            check(written)
        except InturnError as error:
            if not sys.stdin.isatty():
                raise
            question = f"{escape(one_line(error.message)).rstrip('.')}. Edit it again?"
            confirm(question, default=True)
        else:
            return written


def _is_changed(path: Path, text: str) -> bool:
    try:
        return _read(path).strip() != text.strip()
    except UnicodeError:
        return True
    except OSError:
        return False


def _read(path: Path) -> str:
    return path.read_text("utf-8-sig")
