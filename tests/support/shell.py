"""A bash as a reader of the documentation has one."""

from __future__ import annotations

import codecs
import os
import re
import subprocess
import sys
from pathlib import Path

from support.forked import folder_of_inturn, folder_of_python


class Shell:
    """A bash that keeps its variables and jobs from command to command, on a terminal of 80 columns."""

    _END = "=== end of command ==="

    def __init__(self, folder: Path, dsn: str, binaries: Path) -> None:
        ours, theirs = os.openpty()
        self._output = os.fdopen(ours, "rb", buffering=0)
        folders = (folder_of_inturn(), folder_of_python(), Path(sys.executable).parent, binaries)
        path = os.pathsep.join([*map(str, folders), os.environ["PATH"]])
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "INTURN", "PYTHON"))}
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env={
                **environment,
                "PATH": path,
                "INTURN_DSN": dsn,
                "TERM": "dumb",
                "PAGER": "cat",
                "COLUMNS": "80",
            },
        )
        os.close(theirs)

    def run(self, command: str) -> tuple[str, int]:
        """Return what a command prints, on both streams, and its exit status."""
        assert self._process.stdin is not None
        # What is started in the background may not hold the terminal, nor read what we write.
        script = f"{{ {command}\n}} </dev/null\nprintf '\\n{self._END}%s\\n' $?\n"
        self._process.stdin.write(script.encode())
        self._process.stdin.flush()
        printed, decoder = "", codecs.getincrementaldecoder("utf-8")()  # a character may come in two parts
        while not (found := re.search(rf"\r?\n{self._END}(\d+)\r?\n", printed)):
            printed += decoder.decode(self._output.read(65536))
        return printed[: found.start()], int(found[1])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\nkill $(jobs -p) 2>/dev/null; wait\n")
        self._process.stdin.close()
        self._process.wait(30)
        self._output.close()
