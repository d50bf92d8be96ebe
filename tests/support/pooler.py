"""Debian's PgBouncer in front of a test's server, in the pool mode that the test is about."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from support import roles
from support.server import Server

PROGRAM = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"

_SETTINGS = """
[databases]
* = host={directory} port={server_port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = {mode}
default_pool_size = {sessions}
max_client_conn = 500
server_round_robin = 1
server_fast_close = 1
log_connections = 0
log_disconnections = 0
"""


def need_pgbouncer() -> None:
    """Skip the test, loudly, where there is no PgBouncer."""
    if not Path(PROGRAM).exists():
        pytest.skip("NOT TESTED: no pgbouncer; apt-get install pgbouncer")


class Pooler:
    """A running PgBouncer; leaving its block ends it.

    Its sessions take turns (`server_round_robin`), so that a client soon meets one that another has used.

    Args:
        server: what it stands before.
        mode: its pool mode: session, transaction or statement.
        sessions: how many sessions with the server a login has at most in a database.
        logins: further ones that may connect through it.
    """

    def __init__(self, server: Server, mode: str, *, sessions: int = 20, logins: Sequence[str] = ()) -> None:
        need_pgbouncer()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._folder = Path(tempfile.mkdtemp(prefix="inturn-pgbouncer-"))
        settings, users = self._folder / "pgbouncer.ini", self._folder / "users"
        users.write_text("".join(f'"{name}" ""\n' for name in (*roles.LOGINS, *logins)))
        settings.write_text(
            _SETTINGS.format(
                directory=server.directory,
                server_port=server.port,
                port=self.port,
                mode=mode,
                sessions=sessions,
                users=users,
            )
        )
        user = "nobody" if os.getuid() == 0 else None  # it refuses to run as root
        if user:
            shutil.chown(self._folder, user)
        self._log = (self._folder / "log").open("w+")
        self._process = subprocess.Popen(
            [PROGRAM, str(settings)], stdout=self._log, stderr=subprocess.STDOUT, user=user
        )

    def dsn(self, dbname: str, **parameters: object) -> str:
        """Return the connection string of a database, by the pooler."""
        return make_conninfo(
            host="127.0.0.1",
            port=self.port,
            dbname=dbname,
            **{"user": roles.OWNER, **{name: str(value) for name, value in parameters.items()}},
        )

    def __enter__(self) -> Self:
        deadline = time.monotonic() + 30
        while not self._answers():
            assert time.monotonic() < deadline, "PgBouncer does not answer"
            time.sleep(0.01)
        return self

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"PgBouncer ended: {(self._folder / 'log').read_text()}")
        try:
            psycopg.connect(self.dsn("postgres"), autocommit=True).close()
        except psycopg.OperationalError:
            return False
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder)
