"""Who closes stdout or stderr (`>&-`) does not want to read them; the command does what it was asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.database import Database
from support.process import run_inturn

CLOSED = {"stdout": ">&-", "stderr": "2>&-", "both": ">&- 2>&-", "all": "<&- >&- 2>&-"}
COMMANDS = (
    *("--help", "topic list", "topic show orders", "append orders k2 insert", "apply --drain", "keys --json"),
    *("status", "why k", "show k", "doctor", "verify", "prune --older-than 1d", "upgrade", "upgrade --sql"),
    *("wait k --timeout 0", "pause k", "resume k", "nonsense", "keys --topic nono"),
    "apply --drain --processes 2",
)


def _run(dsn: str, command: str, how: str) -> subprocess.CompletedProcess[str]:
    inturn = Path(sys.executable).with_name("inturn")
    return subprocess.run(
        ["/bin/sh", "-c", f'"{inturn}" {command} {CLOSED[how]}'],
        capture_output=True,
        text=True,
        env={"INTURN_DSN": dsn, "PATH": "/usr/bin:/bin"},
        check=False,
    )


@pytest.mark.parametrize("how", CLOSED)
def test_every_command_ends_with_the_code_that_it_has_otherwise(witness: Database, how: str) -> None:
    witness.execute("SELECT inturn.append('orders', 'k', 'insert')")
    for command in COMMANDS:
        closed = _run(witness.dsn, command, how)
        if command.startswith(("pause", "resume")):  # a second one is refused
            assert closed.returncode == 0, command
            continue
        assert closed.returncode == run_inturn(witness.dsn, *command.split())[0], command
        assert "internal error" not in closed.stderr, command
    done = witness.execute("SELECT key, count(*) FROM app.witness GROUP BY key ORDER BY key")
    assert done == [("k", 1), ("k2", 2)]
