"""The crontabs that look after a database: what each line mails on a good night, and on a bad one.

That of docs/how-to/run-from-cron.md, which applies, is in test_cron.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict
from support.cron import Job, Machine, Run, jobs
from support.database import Database, until
from support.logins import login
from support.place import DOCS, ROOT
from support.shop import at_work

from inturn.applier import Applier
from inturn.cli.exit_codes import ExitCode

_CRONTAB = re.compile(r"^<!-- file: crontab -->\n```crontab\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Which command of inturn a job runs, or another program.
_WORD = re.compile(r"(?:\S*/inturn )?(\w+)")


def jobs_of(page: str) -> dict[str, Job]:
    """Return the jobs of a page's crontab, by what they run."""
    (text,) = _CRONTAB.findall((DOCS / "how-to" / f"{page}.md").read_text())
    found = {match[1]: job for job in jobs(text) if (match := _WORD.match(job.command))}
    assert len(found) == len(jobs(text))
    return found


NIGHTLY, WATCHING = jobs_of("a-day-a-week-a-year"), jobs_of("watch-it")


@pytest.fixture
def shop(witness: Database) -> Database:
    """A database in which a day's commands were applied, and are old enough to go."""
    witness.execute("SELECT inturn.set_topic('orders', retain => '1 microsecond', max_attempts => 1)")
    witness.execute("SELECT inturn.append('orders', 'k' || n, 'insert') FROM generate_series(1, 3) n")
    witness.execute("CALL inturn.apply()")
    return witness


@pytest.fixture
def machine(shop: Database, tmp_path: Path) -> Machine:
    machine = Machine(tmp_path, shop.server.binaries)
    operator = conninfo_to_dict(login(shop, "inturn_operator"))
    machine.name_services(shop_ops=operator, shop_owner=conninfo_to_dict(shop.owner_dsn))
    return machine


@contextmanager
def all_is_well(database: Database) -> Iterator[None]:
    """Have appliers alive, and the tests' server be as durable as one in production."""
    server = database.server
    durable = "SELECT setting FROM pg_settings WHERE name = 'fsync'"

    def set_fsync(statement: str, value: str) -> None:
        server.administer(statement)
        server.administer("SELECT pg_reload_conf()")
        until(lambda: database.value(durable) == value, f"fsync is {value}")

    try:
        set_fsync("ALTER SYSTEM SET fsync = on", "on")
        with at_work(database, Applier()):
            yield
    finally:
        set_fsync("ALTER SYSTEM RESET fsync", "off")


def test_a_page_says_what_each_of_its_lines_runs_and_when() -> None:
    assert {name: job.schedule for name, job in NIGHTLY.items()} == {
        "status": "*/5 * * * *",
        "pg_dump": "0 1 * * *",
        "prune": "0 2 * * *",
        "doctor": "0 5 * * *",
        "verify": "0 6 * * 0",
    }
    assert {name: job.schedule for name, job in WATCHING.items()} == {
        "status": "*/5 * * * *",
        "verify": "0 6 * * 0",
    }
    assert {job.settings["MAILTO"] for job in (*NIGHTLY.values(), *WATCHING.values())} == {"ops@example.com"}


def test_a_good_night_mails_nothing_and_leaves_a_backup_and_no_old_commands(
    shop: Database, machine: Machine
) -> None:
    with all_is_well(shop):
        assert {name: machine.run(job) for name, job in NIGHTLY.items()} == dict.fromkeys(NIGHTLY, Run("", 0))
    (backup,) = (machine.root / "backup").iterdir()
    assert re.fullmatch(r"shop-[1-7]\.dump", backup.name)
    assert "TABLE DATA inturn command_log" in shop.server.run("pg_restore", "--list", str(backup))
    assert shop.value("SELECT count(*) FROM inturn.command_log") == 0


def test_a_bad_night_mails_what_is_wrong(shop: Database, machine: Machine) -> None:
    shop.execute("SELECT inturn.append('orders', 'held', 'fail')")
    shop.execute("CALL inturn.apply()")
    shop.execute("UPDATE inturn.command_log SET created_at = now() - interval '1 hour' WHERE key = 'held'")
    shop.execute("SELECT inturn.append('orders', 'late', 'insert')")
    shop.execute("DELETE FROM inturn.command_log WHERE key = 'k1'")
    unfinished = NIGHTLY["prune"].changed("--max-seconds 3600", "--max-seconds 1e-9")
    for job, code, says in (
        (NIGHTLY["status"], ExitCode.UNHEALTHY, "topic orders: 1 key is ready or retrying, and no applier"),
        (NIGHTLY["status"], ExitCode.UNHEALTHY, "a command has been pending for 1h, longer than 10m"),
        (NIGHTLY["doctor"], ExitCode.UNHEALTHY, "error durability: fsync is off"),
        (NIGHTLY["verify"], ExitCode.VIOLATED, "topic orders, key k1"),
        (WATCHING["verify"], ExitCode.VIOLATED, "topic orders, key k1"),
        (unfinished, ExitCode.OK, "the time was over: run it again"),
    ):
        run = machine.run(job)
        assert (run.code, says in run.mail) == (code, True), run
    (machine.root / "backup").rmdir()
    assert "No such file or directory" in machine.run(NIGHTLY["pg_dump"]).mail
    shop.execute("UPDATE inturn.topic SET retain = NULL")
    assert "no topic has a retain, so all is kept" in machine.run(NIGHTLY["prune"]).mail


def test_a_database_that_is_down_is_a_line_of_mail_from_each(shop: Database, machine: Machine) -> None:
    down = {"host": "127.0.0.1", "port": "1", "dbname": "shop"}
    machine.name_services(shop_ops=down, shop_owner=down)
    for name, job in NIGHTLY.items():
        run = machine.run(job)
        assert (bool(run.code), "127.0.0.1" in run.mail) == (True, True), (name, run)
        assert name == "pg_dump" or (run.code, run.mail.count("\n")) == (ExitCode.UNREACHABLE, 1), run


def test_every_crontab_of_the_pages_is_run_by_a_test() -> None:
    tested = {"a-day-a-week-a-year.md", "watch-it.md", "run-from-cron.md"}
    line = re.compile(r"^[ `]*(?:[\d*/,-]+ ){5}\S", re.MULTILINE)
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    assert {page.name for page in pages if line.search(page.read_text())} - {"cli.md"} == tested


def test_the_help_shows_the_lines_of_the_page() -> None:
    page = (DOCS / "reference" / "cli.md").read_text()
    shown = jobs("\n".join(re.findall(r"^ +((?:[\d*/]+ ){5}inturn .*)$", page, re.MULTILINE)))
    names = [job.command.split()[1] for job in shown]
    assert {*names} == NIGHTLY.keys() - {"status", "pg_dump"} | {"apply"}
    for name, job in zip(names, shown, strict=True):
        if name != "apply":  # see run-from-cron.md
            assert job.schedule == NIGHTLY[name].schedule
            assert NIGHTLY[name].command.endswith(f"/{job.command}")
