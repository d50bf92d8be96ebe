"""A year in production, in minutes: pruned, watched, crashed, failed over, restored, upgraded."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.combinations import sizes
from support.database import Database, until
from support.next_release import NEXT, NextRelease
from support.own_server import own_database
from support.process import InturnProcess, inturn_apply, run_inturn
from support.recovery_page import lines, run_lines
from support.roles import THEIR_APP, THEIR_TABLES
from support.server import Server
from support.shop import TOPIC, after_restart
from support.year import FORGET_DAYS, PATIENCE, RETAIN_DAYS, Year

#: What the doctor says of the test, and not of the year: its server has fsync off, and its fleet is stopped.
OF_THE_TESTS = {"durability", "appliers"}


@pytest.fixture
def year(server: Server) -> Iterator[Year]:
    """The first day, on a server that can be crashed."""
    with own_database(server) as database:
        year = Year(database)
        yield year
        year.end()


@contextmanager
def fleet(year: Year) -> Iterator[InturnProcess]:
    """Appliers at work; at the end they are asked to stop, and do."""
    with inturn_apply(year.dsn, "--workers", "2") as process:
        yield process
        process.send(signal.SIGTERM)
        assert process.exit_code(PATIENCE) == 0


def _crash(year: Year) -> None:
    """Crash the server while commands are appended, applied, and about to be committed."""
    year.work()
    late = year.database.session()
    late.execute("SELECT inturn.append(%s, 'never', 'insert')", [TOPIC])
    year.database.server.stop("immediate")
    year.database.server.start()
    after_restart(year.database)
    late.close()
    year.wait_drained()
    assert year.database.value("SELECT count(*) FROM inturn.command_log WHERE key = 'never'") == 0


def _fail_over(year: Year) -> None:
    """Lose the server for good in the same way: the standby goes on, and the appliers find it."""
    with year.standby() as standby:
        year.work()
        late = year.database.session()
        late.execute("SELECT inturn.append(%s, 'never', 'insert')", [TOPIC])
        year.fail_over(standby)
        year.append("hot-0")
        year.wait_drained()
    assert year.database.value("SELECT count(*) FROM inturn.command_log WHERE key = 'never'") == 0


def _hold_a_key(year: Year) -> None:
    """A command fails for good: the alert fires, an operator skips the command, the alert clears."""
    year.append(f"poison-{year.day}", name="fail")
    until(lambda: year.database.value("SELECT EXISTS (SELECT FROM inturn.key_mark)"), "held", PATIENCE)
    until(lambda: "InturnKeysHeld" in year.firing(), "the alert fires", PATIENCE)
    year.database.execute(
        "SELECT inturn.skip(topic, key, applied_seq + 1, 'it cannot be') FROM inturn.key_cursor"
        " WHERE held_at IS NOT NULL"
    )
    year.appended -= 1  # it has no effect
    year.wait_drained()
    assert year.firing() == set()


def _leave_alone(year: Year) -> None:
    """Nobody applies for a day: the alert fires, appliers are started, the alert clears."""
    year.work()
    year.pass_day()
    until(lambda: "InturnNoApplier" in year.firing(), "the alert fires", PATIENCE)
    with fleet(year):
        year.wait_drained()
        assert year.firing() == set()


def _restore(year: Year, folder: Path) -> None:
    """Lose the database, and go on in one that was restored from last night's dump, as the how-to has it."""
    server, lost = year.database.server, year.database
    run_lines(lines("backup"), folder, server.binaries, INTURN_DSN=lost.owner_dsn)
    lost.drop()
    restored = Database(server, "restored")
    run_lines(lines("restore"), folder, server.binaries, RESTORED_DSN=restored.owner_dsn)
    # Of the service's own tables the backup's privileges were left out.
    restored.execute(THEIR_APP)
    restored.execute(THEIR_TABLES)
    year.database = restored


def _week(year: Year, number: int) -> None:
    """Seven days and nights, with a failover, a command that fails, and in odd weeks a crash."""
    for day in range(7):
        year.work()
        if day == 2:
            _fail_over(year)
        elif day == 4:
            _hold_a_key(year)
        elif day == 5 and number % 2:
            _crash(year)
        year.wait_drained()
        year.pass_day()
        year.prune()


def _live(year: Year, weeks: int, folder: Path) -> None:
    """Live so many weeks: the first three are the first month; then come a restore and an upgrade."""
    with fleet(year):
        for week in range(3):
            _week(year, week)
    size, rows = year.size(), year.rows()
    _leave_alone(year)
    _restore(year, folder)
    with fleet(year):
        for week in range(3, weeks):
            if week == (3 + weeks) // 2:
                # The appliers are not restarted: what they are given after this they apply, too.
                NextRelease(folder, compatible=True).upgrade(year.database.dsn)
            _week(year, week)
        assert year.database.value("SELECT version_num FROM inturn.schema_version") == NEXT
    assert year.rows() <= 1.25 * rows, (rows, year.rows())
    assert year.size() <= 1.5 * size, (size, year.size())
    _everything_is_well(year)


def _everything_is_well(year: Year) -> None:
    code, out, _ = run_inturn(year.database.dsn, "verify")
    assert code == 0, out
    _, out, _ = run_inturn(year.database.dsn, "doctor", "--json")
    findings = [(each["level"], each["check"]) for each in json.loads(out)["findings"]]
    # The package of this test is the one of before the upgrade.
    assert [each for each in findings if each[1] not in OF_THE_TESTS] == [("warning", "revision")]
    assert year.firing() == set()
    _nothing_was_lost(year)


def _nothing_was_lost(year: Year) -> None:
    """Each committed command took effect once, in its key's order; what was to be forgotten is."""
    database = year.database
    assert database.value("SELECT count(*) FROM app.witness") == year.appended
    out_of_turn = database.execute("""
        SELECT key, seq, before FROM (
            SELECT key, seq, lag(seq) OVER (PARTITION BY key ORDER BY id) AS before FROM app.witness) w
        WHERE seq <> before + 1
    """)
    assert out_of_turn == []
    query = "SELECT now() - min(created_at) < %s * interval '1 day' FROM inturn.command_log"
    assert database.value(query, [RETAIN_DAYS + 1])
    keys = database.execute("SELECT key FROM inturn.key_sequence WHERE key LIKE 'order-%'")
    assert min(int(key.split("-")[1]) for (key,) in keys) >= year.day - FORGET_DAYS - 1
    assert database.value("SELECT max(seq) FROM inturn.command_log WHERE key = 'hot-0'") == database.value(
        "SELECT count(*) FROM app.witness WHERE key = 'hot-0'"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@sizes("weeks", 4, rest=6)
def test_some_weeks_in_production(year: Year, tmp_path: Path, weeks: int) -> None:
    _live(year, weeks, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_year_in_production(year: Year, tmp_path: Path) -> None:
    _live(year, 52, tmp_path)
