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
from support.monitoring import alerts
from support.next_release import NEXT, NextRelease
from support.own_server import own_database
from support.process import InturnProcess, inturn_apply, run_inturn
from support.recovery_page import lines, run_lines
from support.roles import THEIR_APP, THEIR_TABLES
from support.server import Server
from support.shop import TOPIC, after_restart
from support.year import FORGET_DAYS, PATIENCE, RETAIN_DAYS, Year

from inturn.applier.breaker import OPENING_FAILURES

#: The alerts of what no day brings: an hour with a snapshot, or a million dead rows. See tests/monitoring.
NOT_IN_A_YEAR = {"InturnSnapshotHeld", "InturnDeadRows"}
#: Of a day's commands, all of which may just have been counted, more than a tenth.
FAILING = 5
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
    args = ("--workers", "2", "--metrics-port", str(year.port))
    with inturn_apply(year.dsn, *args, app="support.year_app:applier", YEAR=str(year.signs)) as process:
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
        year.database.server.stop("immediate")
        year.scraped.wait_fired("InturnScrapeFailing")
        year.fail_over(standby)
        year.append("hot-0")
        year.wait_drained()
    assert year.database.value("SELECT count(*) FROM inturn.command_log WHERE key = 'never'") == 0


def _hold_keys(year: Year) -> None:
    """Commands fail for good: alerts fire, an operator skips them, the alerts clear."""
    year.wait_drained()
    year.scraped.firing()
    year.append(*(f"poison-{year.day}-{number}" for number in range(FAILING)), name="fail")
    year.scraped.wait_fired("InturnKeysHeld", "InturnFailing")
    held = "SELECT count(*) FROM inturn.key_cursor WHERE held_at IS NOT NULL"
    until(lambda: year.database.value(held) == FAILING, "all are held", PATIENCE)
    year.skip_held()
    year.appended -= FAILING  # they have no effect
    year.wait_drained()
    year.scraped.wait_clear()


def _miss_a_number(year: Year) -> None:
    """A caller's command comes before the one before it: the alert fires until that is there."""
    missing = year.given + 1
    year.give(missing + 1)
    year.scraped.wait_fired("InturnKeysWaiting")
    year.give(missing)
    year.wait_drained()
    year.scraped.wait_clear()


def _close_the_bank(year: Year) -> None:
    """What commands need is down: the alert fires until it answers, and then each has its effect."""
    sign = year.signs / "bank"
    sign.touch()
    year.append(*(f"paid-{year.day}-{number}" for number in range(OPENING_FAILURES)), topic="bank")
    year.scraped.wait_fired("InturnTargetDown")
    sign.unlink()
    year.wait_drained()
    year.scraped.wait_clear()


def _leave_alone(year: Year) -> None:
    """Nobody applies for a day, and alerts fire; then appliers are started, and some of the handlers hang."""
    sign = year.signs / "letters"
    sign.touch()
    year.work()
    year.send("letters", "a", "b")
    year.send("stuck", "a")
    year.pass_day()
    year.printed.wait_fired("InturnNoApplier")
    year.scraped.wait_fired("InturnNotScraped")
    with fleet(year):
        year.scraped.wait_fired("InturnBehind", "InturnHandlersAbandoned", "InturnKeysHeld")
        _end_the_lease(year)
        sign.unlink()
        year.scraped.wait_fired("InturnLeasesLost")
        year.skip_held()
        year.wait_drained()
        year.scraped.wait_clear("InturnHandlersAbandoned")  # until the process is started again


def _end_the_lease(year: Year) -> None:
    """End a lease whose holder only seems to be gone: its work comes too late then, and is done again."""
    leased = "FROM inturn.key_cursor WHERE topic = 'letters' AND claimed_by IS NOT NULL"
    until(lambda: year.database.value(f"SELECT count(*) {leased}"), "a letter is in hand", PATIENCE)
    year.database.execute(f"SELECT inturn.release(topic, key, epoch) {leased}")


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
    """Seven days and nights, with a failover, an outage or a gap, commands that fail, and maybe a crash."""
    for day in range(7):
        year.work()
        if day == 1:
            (_miss_a_number, _close_the_bank)[number % 2](year)
        elif day == 2:
            _fail_over(year)
        elif day == 4:
            _hold_keys(year)
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
        year.scraped.wait_clear()
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
    assert year.printed.firing() == set()
    assert year.printed.fired | year.scraped.fired == alerts().keys() - NOT_IN_A_YEAR
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
