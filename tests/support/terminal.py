"""`inturn` on a terminal of a test's own."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator

import click

from support.forked import folder_of_inturn
from support.roles import with_login

#: What a terminal must not be given as it is.
EVIL = "evil\x1b[2J\u202e\nkey"


def commands_of(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Give every command of the command line, as it is typed."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands_of(command, (*path, name))
        else:
            yield " ".join((*path, name))


class Terminal:
    """`inturn` on a terminal."""

    def __init__(self, dsn: str, *args: str, columns: int = 80, lines: int = 24, **environment: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "INTURN_", "COLUMNS"))}
        dsn, *words = with_login(dsn, *args)
        program = folder_of_inturn() / "inturn"
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
            own = {"INTURN_DSN": dsn, "TERM": "xterm-256color"}
            os.execve(program, [str(program), *words], {**kept, **own, **environment})
        # What is there to be read may end in the midst of a character, or of a code.
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._sent = ""
        self.printed = ""

    def read(self, until: str | None = None) -> str:
        """Read on until this was printed, else to the end."""
        deadline = time.monotonic() + 30
        while until is None or not re.search(until, self.printed):
            assert time.monotonic() < deadline, self.printed
            if select.select([self._terminal], [], [], 1)[0]:
                try:
                    chunk = os.read(self._terminal, 4096)
                except OSError:  # how Linux says that the other side is closed
                    assert until is None, self.printed
                    break
                self._sent += self._decoder.decode(chunk)
                self.printed = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self._sent)
        return self.printed

    def interrupt(self) -> None:
        os.kill(self._pid, signal.SIGINT)

    def exit_code(self) -> int:
        self.read()
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def on_terminal(dsn: str, *args: str, columns: int = 80, **environment: str) -> list[str]:
    """Run it to its good end and return its lines, without colours."""
    terminal = Terminal(dsn, *args, columns=columns, lines=24, **environment)
    assert terminal.exit_code() == 0, terminal.printed
    return terminal.printed.splitlines()
