"""From cron: the very lines of docs/how-to/run-from-cron.md, and what each kind of run prints and returns."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict
from support.cron import Machine, jobs
from support.database import Database, until
from support.logins import login
from support.place import DOCS
from support.roles import APPLIER, OPERATOR, OWNER
from support.server import DEBIAN_BINARIES, Server

PAGE = (DOCS / "how-to" / "run-from-cron.md").read_text()
KEEP_IT_SMALL = (DOCS / "how-to" / "keep-it-small.md").read_text()
FILES = dict(re.findall(r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
SHOWN = re.findall(r"^<!-- not run: .*? -->\n```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CUT, DOWN, HELD, STILL_HELD = SHOWN

_HANDLERS = """
import time
from inturn.applier import Applier

applier = Applier()


@applier.handler("orders")
def apply(connection, command):
    connection.execute("INSERT INTO effect VALUES (%s, %s)", (command.key, command.seq))
    if command.name == "fail":
        raise ValueError("no such article")
    if command.name == "slow":
        time.sleep(1 / 3)
    if command.name == "wait":
        connection.execute("SELECT pg_advisory_xact_lock_shared(4242)")
"""


@dataclass(frozen=True)
class Run:
    """What a run left behind: the log is what it printed on stdout, the mail what cron would send."""

    log: str
    mail: str
    code: int


class Crontab:
    """The page's crontab, in a folder that stands for the machine."""

    def __init__(self, root: Path, database: Database) -> None:
        self.database = database
        self._machine = Machine(root, database.server.binaries)
        (root / "opt/shop/shop").mkdir()
        (root / "opt/shop/shop/handlers.py").write_text(_HANDLERS)
        self._log = root / "var/log/shop/inturn.log"
        # One login for all lines: it applies, and lists what is held.
        shop = conninfo_to_dict(login(database, "inturn_applier", "inturn_operator"))
        database.execute(f"GRANT ALL ON TABLE effect TO {shop['user']}")
        database.execute(f"GRANT ALL ON SEQUENCE effect_id_seq TO {shop['user']}")
        self.service({**shop})
        self.jobs = jobs(FILES["crontab"])

    def use_installed(self) -> None:
        """Run the installed program, which takes longer, from now on."""
        (self._machine.venv / "bin").unlink()
        (self._machine.venv / "bin").symlink_to(Path(sys.executable).parent)

    def service(self, parameters: Mapping[str, object]) -> None:
        self._machine.name_services(shop=parameters)

    def start(self, number: int = 0) -> subprocess.Popen[str]:
        return self._machine.start(self.jobs[number])

    def end(self, running: subprocess.Popen[str]) -> Run:
        ended = self._machine.end(running)
        log = self._log.read_text() if self._log.exists() else ""
        if log:
            os.truncate(self._log, 0)  # another run may have it open
        return Run(log, ended.mail, ended.code)

    def run(self, number: int = 0) -> Run:
        return self.end(self.start(number))

    def append(self, key: str, *names: str) -> None:
        for name in names:
            self.database.execute("SELECT inturn.append('orders', %s, %s)", [key, name])

    def effects(self, key: str) -> list[int]:
        rows = self.database.execute("SELECT seq FROM effect WHERE key = %s ORDER BY id", [key])
        return [seq for (seq,) in rows]


@pytest.fixture
def crontab(database: Database, tmp_path: Path) -> Crontab:
    database.execute("CREATE TABLE effect (key text, seq bigint, id bigserial)")
    database.execute("SELECT inturn.create_topic('orders', max_attempts => 1)")
    return Crontab(tmp_path, database)


def settled(text: str) -> str:
    """Text without what differs from run to run."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", "TIME", text)
    text = re.sub(r"port \d+", "port N", text)
    return re.sub(r"\d[\d.,]*(?= commands? in| s\b|/s)", "N", text).replace("N command ", "N commands ")


def test_the_lines_run_every_minute_and_every_ten(crontab: Crontab) -> None:
    assert [job.schedule for job in crontab.jobs] == ["* * * * *", "*/10 * * * *"]


def test_nothing_to_do_says_nothing_at_all(crontab: Crontab) -> None:
    crontab.use_installed()
    assert crontab.run() == Run("", "", 0)
    assert crontab.run(1) == Run("", "", 0)


def test_an_open_caller_is_nothing_to_do(crontab: Crontab) -> None:
    """Its key is ready, and a turn finds nothing on it."""
    crontab.append("x", "insert")
    caller = crontab.database.session()
    caller.execute("SELECT inturn.append('orders', 'x', 'insert')")
    assert crontab.run().log.startswith("applied 1 command in")
    assert crontab.run() == Run("", "", 0)
    caller.commit()
    assert crontab.run().log.startswith("applied 1 command in")


def test_what_was_done_is_a_line_in_the_log_and_no_mail(crontab: Crontab) -> None:
    crontab.append("x", "insert", "insert")
    run = crontab.run()
    assert (settled(run.log), run.mail, run.code) == ("applied N commands in N s (N/s)\n", "", 0)


def test_overlapping_runs_share_the_keys_and_need_no_flock(crontab: Crontab) -> None:
    crontab.append("x", "insert", "wait", "insert")
    with crontab.database.connect(user=OWNER) as gate:
        gate.execute("SELECT pg_advisory_lock(4242)")
        first = crontab.start()
        until(
            lambda: crontab.database.value("SELECT count(*) FROM pg_locks WHERE NOT granted"),
            "the first run stands in a command",
        )
        crontab.append("y", "insert")
        second = crontab.run()
        assert (settled(second.log), second.mail, second.code) == ("applied N commands in N s (N/s)\n", "", 0)
        assert (crontab.effects("x"), crontab.effects("y")) == ([], [1])
        assert crontab.run() == Run("", "", 0)
    run = crontab.end(first)
    assert (settled(run.log), run.mail, run.code) == ("applied N commands in N s (N/s)\n", "", 0)
    assert crontab.effects("x") == [1, 2, 3]


def test_a_run_cut_in_the_middle_of_a_deep_key_is_continued_by_the_next(crontab: Crontab) -> None:
    crontab.append("x", *["slow"] * 20)
    whole = crontab.jobs
    crontab.jobs = [whole[0].changed("--max-seconds 55", "--max-seconds 1")]
    first = crontab.run()
    assert (settled(first.log), first.mail, first.code) == (settled(CUT), "", 0)
    done = crontab.effects("x")
    assert 0 < len(done) < 20
    assert f"applied {len(done)} command" in first.log
    crontab.database.execute("UPDATE inturn.command_log SET name = 'quick' WHERE seq > %s", [len(done)])
    crontab.jobs = whole
    assert crontab.run().log.startswith(f"applied {20 - len(done)} command")
    assert crontab.effects("x") == list(range(1, 21))


def test_a_database_that_is_down_is_one_line_of_mail(crontab: Crontab) -> None:
    crontab.service({"host": "127.0.0.1", "port": "1", "dbname": "shop"})
    run = crontab.run()
    assert (run.log, settled(run.mail), run.code) == ("", settled(DOWN), 4)
    assert crontab.run(1).code == 4


def test_held_keys_are_said_by_every_run_and_mailed_by_the_second_line(crontab: Crontab) -> None:
    crontab.append("order-7", "fail")
    crontab.append("order-8", "insert")
    run = crontab.run()
    assert (settled(run.mail + run.log), run.code) == (settled(HELD), 3)
    run = crontab.run()
    assert (settled(run.log), run.mail, run.code) == (settled(STILL_HELD), "", 3)
    run = crontab.run(1)
    assert ("order-7" in run.mail, run.code) == (True, 7)


def test_the_page_tells_every_exit_code_right() -> None:
    told = dict(re.findall(r"^\| (.*?) \| .*? \| (\d) \|$", PAGE, re.MULTILINE))
    assert told["found held keys"] == "3"
    assert told["found the database down"] == "4"
    assert told["had nothing to do"] == told["was cut by `--max-seconds`"] == "0"


@pytest.fixture
def pg_cron(tmp_path: Path) -> Iterator[Server]:
    """A server of Debian's with pg_cron, where the package is installed."""
    control = Path("/usr/share/postgresql/15/extension/pg_cron.control")
    if 15 not in DEBIAN_BINARIES or not control.exists():
        pytest.skip("postgresql-15-cron is not installed")
    server = Server(15, extra_settings="shared_preload_libraries = 'pg_cron'\ncron.database_name = 'shop'")
    with (server.directory / "data" / "postgresql.conf").open("a") as conf:
        conf.write(f"cron.host = '{server.directory}'\n")
    server.start()
    yield server
    server.remove()


def test_pg_cron_applies_what_is_ready_and_prunes_what_is_old(pg_cron: Server) -> None:
    """It wakes at the full minute: the schedule of the page, waited for. The nightly job does here, too."""
    database = Database(pg_cron, "shop")
    database.install()
    database.administer("CREATE EXTENSION pg_cron")
    database.administer(f"GRANT USAGE ON SCHEMA cron TO {APPLIER}, {OPERATOR}")
    worker, operator = database.connect(user=APPLIER), database.connect(user=OPERATOR)
    database.execute("""
        CREATE TABLE effect (key text, seq bigint);
        CREATE FUNCTION public.f(command inturn.command) RETURNS void LANGUAGE sql AS $$
            INSERT INTO public.effect VALUES (command.key, command.seq) $$;
        SELECT inturn.create_topic('orders', 'sql:public.f');
        SELECT inturn.append('orders', 'k' || n % 3, 'insert') FROM generate_series(1, 300) n;
    """)
    database.execute("""
        SELECT inturn.create_topic('old', 'sql:public.f', retain => '1 microsecond');
        SELECT inturn.append('old', 'k' || n, 'insert') FROM generate_series(1, 300) n;
    """)
    database.execute("CALL inturn.apply('{old}')")
    database.execute("TRUNCATE effect")
    nightly = re.findall(r"`(SELECT cron.schedule\('inturn-prune', .*)`", KEEP_IT_SMALL)
    (prune,) = [line.replace("'0 2 * * *'", "'* * * * *'") for line in nightly]
    assert "'* * * * *'" in prune
    worker.execute(FILES["pg_cron.sql"].encode())
    operator.execute(prune.encode())
    until(lambda: database.value("SELECT count(*) FROM effect") == 300, "the minute is full", 90)
    until(
        lambda: (
            worker.execute(
                "SELECT DISTINCT username, status FROM cron.job_run_details WHERE command LIKE 'CALL%'"
            ).fetchall()
            == [(APPLIER, "succeeded")]
        ),
        "the job has ended well",
    )
    left = "SELECT count(*) FROM inturn.command_log WHERE topic = 'old'"
    until(lambda: database.value(left) == 0, "what is old is pruned", 90)
    until(
        lambda: (
            operator.execute("SELECT DISTINCT username, status FROM cron.job_run_details").fetchall()
            == [(OPERATOR, "succeeded")]
        ),
        "the prune has ended well",
    )
    database.drop()
