"""The demo: its plan by the seed, its front, what it counts, and that nothing of it stays behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo
from support.database import Database, until
from support.process import InturnProcess, run_inturn
from support.roles import DEMO, as_role

from inturn.cli.demo import command
from inturn.cli.demo import plan as plans
from inturn.cli.demo.database import Findings, find, make_database, note_calls
from inturn.cli.demo.front import Front
from inturn.cli.demo.plan import Call
from inturn.cli.demo.processes import Start, running
from inturn.cli.demo.ways import Result
from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode
from inturn.cli.main import cli

#: Two machines of B, two in reserve, and the applier: from before the first call until one is killed.
PROCESSES = 5


def processes_of(pid: int) -> list[psutil.Process]:
    """The demo's processes that a process started."""

    def is_ours(child: psutil.Process) -> bool:
        try:
            return any("inturn.cli.demo." in word for word in child.cmdline())
        except psutil.NoSuchProcess:  # it has ended since, or has and nobody has waited for it
            return False

    return [child for child in psutil.Process(pid).children(recursive=True) if is_ours(child)]


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended; whose parent was killed may stay for a moment, to be waited for."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def demo_rows(printed: str) -> dict[str, list[str]]:
    before, _, _ = printed.partition("  export ")
    assert max(map(len, before.splitlines())) <= 80
    cells = [re.split(r"\s{2,}", line.strip()) for line in printed.split("\n\n")[1].splitlines()]
    return {f"{number} {row[0]}": row[1:] for number, row in enumerate(cells)}


def test_the_seed_decides_the_calls_and_their_delays() -> None:
    assert plans.plan(20, 7) == plans.plan(20, 7) != plans.plan(20, 8)
    assert plans.plan_hot(20, 7) == plans.plan_hot(20, 7)
    assert plans.seconds_on_the_way("order-1", 2, 7) == plans.seconds_on_the_way("order-1", 2, 7)
    assert plans.seconds_on_the_way("order-1", 2, 7) != plans.seconds_on_the_way("order-1", 2, 8)
    assert [[call.name for call in order] for order in plans.plan(2, 7)] == [
        ["insert", "delete"],
        ["insert", "delete", "insert"],
    ]


@pytest.mark.parametrize("orders", [6, 150])
def test_most_of_the_hot_calls_are_about_one_order(orders: int) -> None:
    calls = Counter(call.key for order in plans.plan_hot(orders, 7) for call in order)
    total = sum(map(len, plans.plan(orders, 7)))
    assert total - 3 < calls.total() <= total
    assert calls["order-1"] > calls.total() / 2


def test_a_ring_moves_only_the_keys_of_a_machine_that_goes_or_comes() -> None:
    keys = [f"order-{n}" for n in range(300)]

    async def owners() -> list[list[str | None]]:
        front = Front(1, lambda _key, _seq: 0.0)
        front.routing = "ring"
        found = []
        for machine in ("B1", "B2", "B3"):
            front.add(machine, 1)
            found.append([front.choose(key) for key in keys])
        await front.remove("B1")
        return [*found, [front.choose(key) for key in keys]]

    _, two, three, without_b1 = asyncio.run(owners())
    assert min(Counter(three)["B1"], Counter(three)["B2"], Counter(three)["B3"]) > 50
    assert all(now in ("B3", before) for before, now in zip(two, three, strict=True))
    assert all(before in ("B1", now) for before, now in zip(three, without_b1, strict=True))
    assert set(without_b1) == {"B2", "B3"}


def test_round_robin_goes_round() -> None:
    front = Front(1, lambda _key, _seq: 0.0)
    for machine in ("B1", "B2"):
        front.add(machine, 1)
    assert [front.choose("order-1") for _ in range(4)] in (["B1", "B2"] * 2, ["B2", "B1"] * 2)


def test_what_went_wrong_is_counted_from_what_was_carried_out(empty_database: Database) -> None:
    dsn = make_database(as_role(empty_database.dsn, DEMO))
    orders = [
        [Call(key, seq, name, 0.0) for seq, name in enumerate(names, 1)]
        for key, names in {
            "right": ["insert", "delete"],
            "overtaken": ["insert", "delete"],
            "gone": ["insert", "delete", "insert"],
            "lost": ["insert", "delete"],
            "doubled": ["insert"],
        }.items()
    ]
    carried_out = [
        *[("right", 1, "insert"), ("right", 2, "delete")],
        *[("overtaken", 2, "delete"), ("overtaken", 1, "insert")],
        *[("gone", 1, "insert"), ("gone", 3, "insert"), ("gone", 2, "delete")],
        ("lost", 1, "insert"),
        *[("doubled", 1, "insert"), ("doubled", 1, "insert")],
    ]
    with psycopg.connect(dsn, autocommit=True) as connection:
        note_calls(connection, "way", orders)
        note_calls(connection, "another way", orders)
        for number, (key, seq, name) in enumerate(carried_out):
            connection.execute(f"SET demo.machine = 'B{1 + (number < 8)}'")
            connection.execute("SELECT carry_out('way', %s, %s, %s)", [key, seq, name])
        assert find(connection, "way") == Findings(commands=10, wrong=3, lost=1, doubled=1, busiest=0.8)
        assert find(connection, "another way") == Findings(10, wrong=2, lost=10, doubled=0, busiest=0)


def test_it_is_run_again_with_the_database_that_it_says_to_export(empty_database: Database) -> None:
    own = make_database(as_role(empty_database.dsn, DEMO))
    try:
        assert make_database(own) == own
    finally:
        empty_database.administer("DROP DATABASE inturn_demo")


def test_another_ones_database_of_that_name_is_left_alone(empty_database: Database) -> None:
    make_database(as_role(empty_database.dsn, DEMO))
    empty_database.administer("COMMENT ON DATABASE inturn_demo IS 'mine'")
    try:
        with pytest.raises(Failure, match="that the demo did not make"):
            make_database(as_role(empty_database.dsn, DEMO))
    finally:
        empty_database.administer("DROP DATABASE inturn_demo")


def test_the_demo_runs_and_by_inturn_nothing_is_wrong(empty_database: Database) -> None:
    code, printed, errors = run_inturn(empty_database.dsn, "demo", "--orders", "40", "--seed", "3")
    assert (code, errors) == (0, "")
    rows = demo_rows(printed)
    assert list(rows) == [
        "0 calls reach B by",
        "1 direct calls",
        "2 a lock per key",
        "3 a ring, queues in memory",
        "4 one machine killed, one added",
        "5 one hot key",
        "6 inturn: A appends, HTTP to B",
        "7 one machine killed, one added",
        "8 one hot key, by arrival",
        "9 inturn: B appends A's numbers",
        "10 merged insert + delete",
    ]
    for number in (6, 7, 8, 9, 10):
        assert list(rows.values())[number][:3] == ["0", "0", "0"]
    assert "80 of 100 commands were merged, on record" in printed
    assert int(rows["5 one hot key"][4].rstrip("%")) > 60
    with psycopg.connect(re.findall(r'INTURN_DSN="(.*)"', printed)[0]) as connection:
        order = "SELECT count(*) FROM (SELECT seq < lag(seq) OVER (PARTITION BY way, key ORDER BY id) AS back"
        order += " FROM witness WHERE way LIKE 'orders-%') w WHERE back"
        assert connection.execute(order).fetchone() == (0,)
        assert connection.execute("SELECT count(DISTINCT machine) FROM witness").fetchone() == (4,)


def test_it_fails_where_by_inturn_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(*_: object) -> list[Result]:
        found = [Findings(10, wrong=0, lost=0, doubled=int(n == 6), busiest=0.5) for n in range(9)]
        return [Result(f"way {n}", findings, 1.0, safe=n > 4) for n, findings in enumerate(found)]

    monkeypatch.setattr(command, "_play", play)
    monkeypatch.setattr(command, "make_database", lambda dsn: dsn)
    result = CliRunner().invoke(cli, ["--dsn", "host=nowhere", "demo"])
    assert result.exit_code == ExitCode.ERROR
    assert "Error: not all was in turn by way 6" in result.output
    assert "By inturn all commands took effect in turn" not in result.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_its_processes_end_with_it(empty_database: Database, number: signal.Signals) -> None:
    # The database has one name: sessions of who was killed before this may be on their way out.
    inside = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'inturn_demo'"
    until(lambda: not empty_database.value(inside), "nobody in the demo's database")
    # So many orders that the first machine is killed, of five for good, long after the test has looked.
    with InturnProcess(empty_database.dsn, "demo", "--orders", "2000") as demo:
        started = until(
            lambda: found if len(found := processes_of(demo.pid)) == PROCESSES else [], "its processes"
        )
        # What was carried out stays to be seen; a call in hand is there for a moment only.
        dsn = make_conninfo(as_role(empty_database.dsn, DEMO), dbname="inturn_demo")
        with psycopg.connect(dsn, autocommit=True) as connection:
            until(lambda: connection.execute("SELECT FROM witness LIMIT 1").fetchall(), "calls carried out")
        demo.send(number)
        code = demo.exit_code()
        if number == signal.SIGINT:
            assert (code, demo.err) == (130, "\ninturn: interrupted\n")
    until(lambda: not any(map(runs, started)), "gone")


def test_its_processes_end_when_one_does_not_start() -> None:
    async def run() -> None:
        async with running([Start("inturn.cli.demo.machine", {}), Start("inturn.cli.no_such_module", {})]):
            raise AssertionError("runs")

    with pytest.raises(Failure, match="did not start"):
        asyncio.run(run())
    assert processes_of(os.getpid()) == []
