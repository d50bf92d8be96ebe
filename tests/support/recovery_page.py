"""What the pages about recovery and moves say to run, for the tests that do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from support.database import Database
from support.forked import folder_of_inturn
from support.place import DOCS

_PAGES = ("back-up-and-recover", "move-to-another-server")


def snippet(name: str) -> str:
    """Return the SQL after the comment with this name."""
    return _after(name, "```sql\n").split("```", 1)[0]


def lines(name: str) -> str:
    """Return the command lines after the comment with this name."""
    block = _after(name, "\n").split("\n\n", 1)[0]
    assert all(line.startswith("    ") for line in block.splitlines()), block
    return f"{block}\n"


def backup_lines(kind: str, *, bare: bool) -> tuple[str, str]:
    """Return the lines that back up in a format, and those that restore it.

    bare: without owners and privileges, as the page has it; otherwise with them, as it allows.
    """
    backup, restore = lines("backup").replace("custom", kind), lines("restore")
    options = "--no-owner --no-privileges "
    if kind == "plain":
        # What takes the place of the first line of each.
        backup, load = lines("plain backup"), lines("plain restore")
        restore = load + restore.partition("\n")[2]
    assert (backup + restore).count(options) == 1
    return (backup, restore) if bare else (backup.replace(options, ""), restore.replace(options, ""))


def _after(name: str, begin: str) -> str:
    text = "".join((DOCS / "how-to" / f"{page}.md").read_text("utf-8") for page in _PAGES)
    return text.split(f"<!-- {name} -->\n{begin}", 1)[1]


def run_lines(script: str, folder: Path, binaries: Path, **variables: str) -> None:
    """Run command lines in a folder; the first that fails ends them.

    But not the doctor, who says of the tests' servers that they have fsync off.

    Args:
        script: the lines.
        folder: where files go.
        binaries: of PostgreSQL, whose programs are used.
        variables: what the page calls the databases, and more.
    """
    path = os.pathsep.join([str(folder_of_inturn()), str(binaries), os.environ["PATH"]])
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace(" doctor\n", " doctor || test $? = 9\n")],
        cwd=folder,
        env={"PATH": path, "HOME": str(folder), "PGCONNECT_TIMEOUT": "10", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def tell_sender(sender: Database, receiver: Database, folder: Path) -> None:
    """Load into the sender what the receiver has accepted, as the page says."""
    run_lines(
        lines("received"),
        folder,
        sender.server.binaries,
        A=sender.owner_dsn,
        B=receiver.owner_dsn,
    )
