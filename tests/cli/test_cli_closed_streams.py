"""Who closes stdout or stderr (`>&-`) does not want to read them; the command does what it was asked for."""

from __future__ import annotations

import os
import subprocess

import pytest
from support.asked import INSTALLED
from support.database import Database
from support.forked import folder_of_inturn
from support.roles import with_login

CLOSED = (">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-")


def _code(dsn: str, command: str, closed: str, *, installed: bool = True) -> int:
    inturn = INSTALLED if installed else folder_of_inturn() / "inturn"
    ended = subprocess.run(
        ["/bin/sh", "-c", f'"{inturn}" {command} {closed}'],
        capture_output=True,
        text=True,
        env={
            "INTURN_DSN": with_login(dsn, *command.split())[0],
            "PATH": "/usr/bin:/bin",
            **{name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ},
        },
        check=False,
    )
    assert "internal error" not in ended.stderr
    return ended.returncode


@pytest.mark.each_value
@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("--help", 0),
        ("keys --json", 0),
        ("why k", 0),
        ("upgrade --sql", 0),
        ("wait k --timeout 0", 11),
        ("x", 2),
    ],
)
def test_a_command_that_prints_ends_with_the_code_that_it_has_otherwise(
    witness: Database, command: str, code: int, closed: str
) -> None:
    witness.execute("SELECT inturn.append('orders', 'k', 'insert')")
    # All of them at once by the installed program.
    assert _code(witness.dsn, command, closed, installed=closed == CLOSED[-1]) == code


def test_a_command_that_changes_something_has_done_it(witness: Database) -> None:
    for done, closed in enumerate(CLOSED, 1):
        for command in ("append orders k insert", "apply --drain"):
            assert _code(witness.dsn, command, closed, installed=closed == CLOSED[-1]) == 0, closed
        assert witness.execute("SELECT key, count(*) FROM app.witness GROUP BY key") == [("k", done)]


def test_the_processes_of_an_applier_have_no_connection_for_a_stream(witness: Database) -> None:
    witness.execute("SELECT inturn.append('orders', 'k', 'insert')")
    assert _code(witness.dsn, "apply --drain --processes 2", "<&- >&- 2>&-") == 0
    assert witness.execute("SELECT key, count(*) FROM app.witness GROUP BY key") == [("k", 1)]
