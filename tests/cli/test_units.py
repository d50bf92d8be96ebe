"""The units of the pages, run as systemd runs them: what they start, how that ends, and what then."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.cron import Machine
from support.database import Database, set_revision, until
from support.place import DOCS, ROOT
from support.shop import append, open_shop

from inturn.cli.exit_codes import ExitCode
from inturn.cli.run.apply import apply

_FILE = re.compile(r"^<!-- file: (inturn-apply\.\w+) -->\n```ini\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CRON, DEPLOY = ((DOCS / "how-to" / f"{page}.md").read_text() for page in ("run-from-cron", "deploy-appliers"))
#: Of each page: its units.
FILES = {"cron": dict(_FILE.findall(CRON)), "daemon": dict(_FILE.findall(DEPLOY))}

_HANDLERS = """
from inturn.applier import Applier

applier = Applier()


@applier.handler("shop")
def apply(connection, command):
    written = (command.key, command.seq, command.name)
    connection.execute("INSERT INTO app.witness (key, seq, name) VALUES (%s, %s, %s)", written)
"""


def _service(page: str) -> dict[str, str]:
    """Return the section Service of a page's unit."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(FILES[page]["inturn-apply.service"])
    return dict(parser["Service"])


DAEMON = _service("daemon")
GRACE = float(str(next(each.default for each in apply.params if each.name == "grace")))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
@pytest.mark.parametrize("page", FILES)
def test_systemd_accepts_the_units(page: str, tmp_path: Path) -> None:
    (tmp_path / "opt/shop").mkdir(parents=True)
    (tmp_path / "opt/shop/.venv").symlink_to(Path(sys.executable).parents[1])
    for name, text in FILES[page].items():
        (tmp_path / name).write_text(text.replace("/opt/", f"{tmp_path}/opt/"))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in FILES[page])],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in (found.stdout + found.stderr).splitlines() if "inturn-apply" in line]
    assert (ours, found.returncode) == ([], 0)


def test_the_unit_runs_what_the_crontab_runs() -> None:
    line = re.search(r"^\* \* \* \* \* cd /opt/shop && (\S+ .*?) >> ", CRON, re.MULTILINE)
    assert line is not None
    assert _service("cron")["ExecStart"] == f"/opt/shop/{line[1]}"


def test_what_kills_an_applier_waits_for_longer_than_its_grace() -> None:
    assert float(DAEMON["TimeoutStopSec"]) > GRACE
    (kubernetes,) = re.findall(r"`terminationGracePeriodSeconds: (\d+)`", DEPLOY)
    assert float(kubernetes) > GRACE
    (compose,) = re.findall(r"stop_grace_period: (\d+)s", (ROOT / "docker-compose.yml").read_text())
    assert float(compose) > GRACE
    cron = _service("cron")
    (seconds,) = re.findall(r"--max-seconds (\d+)", cron["ExecStart"])
    assert float(cron["TimeoutStartSec"]) > float(seconds) + GRACE


def test_the_daemon_starts_stops_and_is_left_alone_where_a_start_does_not_help(
    database: Database, tmp_path: Path
) -> None:
    open_shop(database)
    append(database, "a", "insert")
    machine = Machine(tmp_path, database.server.binaries)
    folder = Path(machine.here(DAEMON["WorkingDirectory"]))
    (folder / "shop").mkdir()
    (folder / "shop/handlers.py").write_text(_HANDLERS)

    def start(dsn: str, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*shlex.split(machine.here(DAEMON["ExecStart"])), *more],
            cwd=folder,
            env=machine.environment({"INTURN_DSN": dsn}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def code_of(dsn: str, *more: str) -> int:
        process = start(dsn, *more)
        process.communicate(timeout=60)
        return process.returncode

    running = start(database.applier_dsn)
    try:
        until(lambda: database.value("SELECT count(*) FROM app.witness") == 1, "it applies")
    finally:
        running.send_signal(signal.SIGTERM)
        said, _ = running.communicate(timeout=60)
    assert running.returncode == ExitCode.OK, said
    assert all(json.loads(line) for line in said.splitlines())
    assert code_of("host=127.0.0.1 port=1") == ExitCode.UNREACHABLE
    useless = {code_of(database.applier_dsn, "--workers", "0")}
    set_revision(database, "9999")
    useless.add(code_of(database.applier_dsn))
    assert {str(int(code)) for code in useless} == {*DAEMON["RestartPreventExitStatus"].split()}
