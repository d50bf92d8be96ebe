"""Running pgbench: plain INSERTs and appends, with the same clients and the same protocol."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

from support import roles
from support.database import Database

#: The plain INSERT: the same columns, in a table as one writes it: a bigserial key and nothing else.
PLAIN = """
\\set k random(1, 1000000000)
INSERT INTO app.plain (topic, key, name, payload) VALUES ('orders', 'k' || :k, 'insert', '{"amount": 1}');
"""
NEW_KEYS = """
\\set k random(1, 1000000000)
SELECT inturn.append('orders', 'k' || :k, 'insert', '{"amount": 1}');
"""
ACTIVE_KEYS = """
\\set k random(1, 1000)
SELECT inturn.append('orders', 'active' || :k, 'insert', '{"amount": 1}');
"""
ONE_KEY = """
SELECT inturn.append('orders', 'one', 'insert', '{"amount": 1}');
"""
ONE_KEY_ON_ARRIVAL = """
SELECT inturn.append('arrival', 'one', 'insert', '{"amount": 1}');
"""
#: A disk, or a replica, that takes 2 ms a flush.
SLOW_COMMIT = "-c commit_delay=2000 -c commit_siblings=0"
#: Only a superuser may set that, unless it is granted.
ALLOW_SLOW_COMMIT = f"GRANT SET ON PARAMETER commit_delay TO {roles.OWNER}"


def command(
    database: Database, file: str, *, clients: int, seconds: int, protocol: str, dsn: str = ""
) -> list[str]:
    """Return the command line that runs a script for so many seconds; 0: once a client."""
    return [
        str(database.server.binaries / "pgbench"),
        "--no-vacuum",
        f"--protocol={protocol}",
        f"--file={file}",
        f"--client={clients}",
        f"--jobs={min(clients, os.cpu_count() or 1)}",
        f"--time={seconds}" if seconds else "--transactions=1",
        dsn or database.dsn,
    ]


def rate(
    database: Database,
    script: str,
    *,
    clients: int,
    seconds: int,
    protocol: str,
    options: str = "",
    dsn: str = "",
) -> float:
    """Run a script for some seconds and return its transactions a second.

    Args:
        database, script, clients, seconds, protocol: what runs, and how; 0 seconds: once a client.
        options: settings of the sessions, as in PGOPTIONS.
        dsn: where another login than the owner's connects.

    Raises:
        RuntimeError: pgbench failed, or a transaction did.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        done = subprocess.run(
            command(database, file.name, clients=clients, seconds=seconds, protocol=protocol, dsn=dsn),
            capture_output=True,
            text=True,
            check=False,
            cwd=Path("/"),
            env={**os.environ, "PGOPTIONS": options},
        )
    found = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
    failed = re.search(r"number of failed transactions: ([1-9]\d*)", done.stdout)
    if done.returncode or failed or not found:
        raise RuntimeError(f"pgbench failed:\n{done.stdout}{done.stderr}")
    return float(found[1])
