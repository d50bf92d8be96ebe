"""The progress bar of a drain: on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from support.database import Database

INTURN = str(Path(sys.executable).parent / "inturn")


def _read_all(terminal: int) -> str:
    shown = b""
    while True:
        try:
            read = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            return shown.decode()
        if not read:
            return shown.decode()
        shown += read


@pytest.fixture
def slow(witness: Database) -> Database:
    """40 commands, each of which takes 20 ms."""
    witness.execute("""
        CREATE FUNCTION app.slow(command inturn.command) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(0.02)';
        SELECT inturn.create_topic('slow', 'sql:app.slow', batch_commands => 1);
        SELECT inturn.append('slow', 'k' || i, 'wait') FROM generate_series(1, 40) i;
    """)
    return witness


def test_a_drain_on_a_terminal_shows_how_far_it_is_of_what_was_ready(slow: Database) -> None:
    terminal, stderr = pty.openpty()
    process = subprocess.Popen(
        [INTURN, "apply", "--drain", "--topic", "slow"],
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, "INTURN_DSN": slow.applier_dsn, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(stderr)
    shown = _read_all(terminal)
    os.close(terminal)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "/40" in shown
    assert said.startswith(b"applied 40 commands")


def test_a_drain_elsewhere_writes_no_bar(slow: Database) -> None:
    done = subprocess.run(
        [INTURN, "apply", "--drain", "--topic", "slow"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "INTURN_DSN": slow.applier_dsn},
    )
    assert "/40" not in done.stdout + done.stderr
