"""The embedded server as root: another user's, with nothing of root's opened to it, and no link followed."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # it ships no types
import pytest
from support.forked import folder_of_inturn

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="NOT TESTED: the embedded server as root"
)


class Place:
    """A folder of root's, with the data below it."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.data = top / "data"

    def run(
        self, *args: str, data: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "INTURN_", "XDG_"))}
        return subprocess.run(
            [folder_of_inturn() / "inturn", "embedded", *args],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            env=clean | {"INTURN_EMBEDDED_DATA": str(data or self.data)} | environment,
        )

    def refused(self, *args: str, data: Path | None = None) -> str:
        done = self.run(*args, data=data)
        assert done.returncode != 0, done.stdout
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture
def place() -> Iterator[Place]:
    top = Path(tempfile.mkdtemp(prefix="inturn-root-"))
    top.chmod(0o711)
    place = Place(top)
    yield place
    place.run("stop")
    shutil.rmtree(top)


@pytest.fixture(scope="module")
def stopped() -> Iterator[Path]:
    """The data of a server that was started and stopped."""
    place = Place(Path(tempfile.mkdtemp(prefix="inturn-root-made-")))
    place.top.chmod(0o711)
    place.run("start")
    place.run("stop")
    yield place.data
    shutil.rmtree(place.top)


@pytest.fixture
def used(place: Place, stopped: Path) -> Place:
    """A place with data as after a start and a stop."""
    subprocess.run(["cp", "-a", stopped, place.data], check=True)
    return place


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_the_server_has_no_group_of_root_and_none_of_its_environment(place: Place) -> None:
    assert place.run("start", SECRET_OF_ROOT="s3cret").returncode == 0
    process = psutil.Process(int((place.data / "postmaster.pid").read_text().split()[0]))
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    groups = {int(g) for line in status if line.startswith(("Gid:", "Groups:")) for g in line.split()[1:]}
    assert process.username() == "pgserver"
    assert 0 not in groups
    assert "SECRET_OF_ROOT" not in process.environ()
    assert mode(place.data) == 0o700
    assert [path for path in place.data.rglob("*") if path.lstat().st_gid == 0] == []


def test_no_folder_above_the_data_is_opened(place: Place) -> None:
    place.top.chmod(0o700)
    said = place.refused("start")
    assert mode(place.top) == 0o700
    assert f"chmod o+x {place.top}" in said
    assert "INTURN_EMBEDDED_DATA" in said
    place.top.chmod(0o711)
    assert place.run("start").returncode == 0
    assert mode(place.top) == 0o711


def test_a_folder_of_the_data_that_was_open_is_closed(used: Place) -> None:
    used.data.chmod(0o750)
    assert used.run("start").returncode == 0
    assert mode(used.data) == 0o700


def test_a_link_in_the_place_of_the_data_is_not_followed(place: Place) -> None:
    theirs = place.top / "theirs"
    theirs.mkdir()
    place.data.symlink_to(theirs)
    assert "is a link" in place.refused("start")
    assert (theirs.stat().st_uid, list(theirs.iterdir())) == (0, [])


@pytest.mark.parametrize(
    "name", ["PG_VERSION", "postmaster.pid", "log", ".handle_pids.json", ".s.PGSQL.5432"]
)
def test_a_link_in_the_folder_is_neither_read_nor_written(used: Place, name: str) -> None:
    secret = used.top / "secret"
    secret.write_text("root:s3cret:FATAL:\n" * 8)
    secret.chmod(0o600)
    (used.data / name).unlink(missing_ok=True)
    (used.data / name).symlink_to(secret)
    for command in ("start", "stop", "status"):
        done = used.run(command)
        assert "s3cret" not in done.stdout + done.stderr
    assert f"{name} in it is a link" in used.refused("start")
    assert secret.read_text() == "root:s3cret:FATAL:\n" * 8
    (used.data / name).unlink()


@pytest.mark.parametrize("where", ["another's", "everybody's", "sticky"])
def test_a_folder_in_which_others_could_plant_a_link_is_not_used(place: Place, where: str) -> None:
    if where == "another's":
        os.chown(place.top, 65534, 65534)
    else:
        place.top.chmod(0o1777 if where == "sticky" else 0o777)
    said = place.refused("start")
    assert "not root's alone" in said
    assert list(place.top.iterdir()) == []


def test_a_link_of_another_above_the_data_is_not_followed(place: Place) -> None:
    target, link = place.top / "target", place.top / "link"
    target.mkdir()
    link.symlink_to(target)
    os.chown(link, 65534, 65534, follow_symlinks=False)
    assert "not root's alone" in place.refused("start", data=link / "data")
    assert list(target.iterdir()) == []


def test_a_folder_of_something_else_is_not_given_away(place: Place) -> None:
    place.data.mkdir()
    (place.data / "mine").write_text("")
    assert "something else" in place.refused("start")
    assert place.data.stat().st_uid == 0


def test_a_process_that_is_not_the_server_s_is_not_signalled(used: Place) -> None:
    used.run("start")
    pid_file = used.data / "postmaster.pid"
    written = pid_file.read_text()
    with subprocess.Popen(["sleep", "600"]) as mine:
        pid_file.write_text(written.replace(written.split("\n", 1)[0], str(mine.pid), 1))
        assert "not pgserver's" in used.refused("stop")
        assert mine.poll() is None
        mine.kill()
    pid_file.write_text(written)
