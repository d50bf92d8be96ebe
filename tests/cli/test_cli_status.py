"""`inturn status`, and topic_status under it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from support.database import Database
from support.plans import explain, nodes
from support.process import inturn_apply, run_inturn
from support.roles import APPLIER, OWNER
from support.shop import append, gate_shut, open_shop, wait_at_gate
from support.terminal import Terminal


def _read(database: Database, *args: str) -> dict[str, Any]:
    code, out, err = run_inturn(database.dsn, "status", *args, "--json")
    assert code == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


@pytest.fixture
def orders(witness: Database) -> Database:
    """Topic orders with 3 commands applied, a held, a paused and two ready keys; topic bills without keys."""
    witness.execute("UPDATE inturn.topic SET max_attempts = 1")
    for key, name in (("a", "insert"), ("a", "insert"), ("b", "insert"), ("c", "fail")):
        witness.execute("SELECT inturn.append('orders', %s, %s)", [key, name])
    witness.execute("CALL inturn.apply()")
    for key in ("d", "e", "e", "f"):
        witness.execute("SELECT inturn.append('orders', %s, 'insert')", [key])
    witness.execute("SELECT inturn.pause('orders', 'f', 'a test')")
    witness.execute("SELECT inturn.create_topic('bills')")
    return witness


def test_a_topic_is_summed_up(orders: Database) -> None:
    bills, of_orders = _read(orders)["topics"]
    counted = ("held", "retrying", "paused", "ready", "pending", "exact", "applied", "failed")
    assert [of_orders[name] for name in counted] == [1, 0, 1, 2, 5, True, 3, 1]
    assert [bills[name] for name in counted] == [0, 0, 0, 0, 0, True, 0, 0]
    assert of_orders["applied_per_second"] == 0.01
    oldest = orders.value("SELECT created_at FROM inturn.command_log WHERE key = 'c'")
    assert of_orders["oldest_pending_at"] == oldest.isoformat()
    assert [topic["topic"] for topic in _read(orders, "--topic", "bills")["topics"]] == ["bills"]
    assert run_inturn(orders.dsn, "status", "--topic", "nosuch")[0] == 1


def test_only_the_last_minutes_count(orders: Database) -> None:
    orders.execute("UPDATE inturn.turn SET finished_at = now() - interval '6 min' WHERE key <> 'b'")
    (row,) = orders.execute("SELECT applied, failed FROM inturn.topic_status('orders')")
    assert row == (1, 0)
    (row,) = orders.execute("SELECT applied, failed FROM inturn.topic_status('orders', '10 min')")
    assert row == (3, 1)


def test_more_pending_than_was_looked_at_is_said(orders: Database) -> None:
    orders.execute("""
        INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at)
        SELECT 'orders', 'many' || n, 0, 0, now() FROM generate_series(1, 50000) n
    """)
    topic = _read(orders, "--topic", "orders")["topics"][0]
    assert (topic["ready"], topic["exact"]) == (50002, False)
    assert topic["pending"] >= 5
    assert f"{topic['pending']:,}+" in run_inturn(orders.dsn, "status")[1]


def test_the_table_says_it_all(orders: Database) -> None:
    orders.execute("SELECT inturn.pause_topic('bills', 'a test', now() + interval '2 h 5 min')")
    code, out, err = run_inturn(orders.dsn, "status")
    assert (code, err) == (0, "")
    heading, bills, of_orders, paused, *_ = out.splitlines()
    assert heading.split() == [
        *("topic", "held", "retrying", "paused", "ready", "pending", "oldest", "rate", "failed"),
    ]
    assert bills.split() == ["bills", "0"]
    assert of_orders.split()[:5] == ["orders", "1", "1", "2", "5"]
    assert of_orders.split()[-2:] == ["0.01/s", "1"]
    assert re.fullmatch(r"topic bills: paused for \d+s, for another 2h", paused)
    assert "no applier is alive" in out
    assert max(map(len, out.splitlines())) <= 80


def test_topics_that_nobody_serves_beside_one_that_is_served_are_said(orders: Database) -> None:
    """Where no applier is alive at all, one line says so; where some are, each topic without one does."""
    orders.execute("SELECT inturn.create_topic('posts', numbering => 'arrival')")
    orders.execute("SELECT inturn.append('posts', 'x', 'insert'), inturn.append('bills', 'x', 'insert')")
    with orders.connect(user=APPLIER) as applier:
        applier.execute("SELECT inturn.announce_applier('node:7', '{orders}', 'b1', 1, '0001')")
        out = run_inturn(orders.dsn, "status")[1]
    said = [line for line in out.splitlines() if line.startswith("topic ")][1:]
    assert said[0] == "topic bills: 1 key is ready or retrying, and no applier of it is alive"
    arrived = r"topic posts: 1 command that arrived \ds ago has no number yet, and no applier of it is alive"
    assert re.fullmatch(arrived, said[1])
    assert len(said) == 2, "nothing is said twice"


def test_who_has_abandoned_handlers_is_told_by_process_as_metrics_count_them(orders: Database) -> None:
    """Each worker of a process announces all; a client of one's own may be called anything."""
    for applier, pid, abandoned in (
        *(("h:1-a:1", 1, 2), ("h:1-a:2", 1, 3), ("billing:a", 12, 1), ("billing:b", 13, 4)),
        *(("own", 14, 5), ("another", None, 6), ("idle", 15, 0)),
    ):
        orders.execute(
            "SELECT inturn.announce_applier(%s, '{orders}', 'b', %s, '0001', true, '{}', %s)",
            [applier, pid, abandoned],
        )
    out = run_inturn(orders.dsn, "status")[1]
    told = re.findall(r"^(.*) has abandoned (\d+)", out, re.MULTILINE)
    processes = {"process 1": 3, "process 12": 1, "process 13": 4, "process 14": 5}
    assert {who: int(count) for who, count in told} == {
        **{f"{process} on b": count for process, count in processes.items()},
        "applier another": 6,
    }
    metric = "SELECT value FROM inturn.server_metrics() WHERE metric = 'inturn_abandoned_handlers'"
    assert orders.value(metric) == sum(int(count) for _, count in told)


def test_an_applier_at_work_is_shown_with_its_key_and_gone_afterwards(database: Database) -> None:
    open_shop(database, target="sql")
    append(database, "stuck", "after")
    with gate_shut(database), inturn_apply(database.dsn, app=None):
        wait_at_gate(database)
        (applier,) = _read(database)["appliers"]
        assert (applier["doing"], applier["topic"], applier["key"], applier["seq"]) == (
            "applying",
            "shop",
            "stuck",
            1,
        )
        out = run_inturn(database.dsn, "status")[1]
        assert "applying" in out
        assert "stuck" in out
        assert _read(database, "--topic", "shop")["appliers"]
    assert "no applier is alive" in run_inturn(database.dsn, "status")[1]


def test_without_topics_it_says_how_to_make_one(database: Database) -> None:
    code, out, err = run_inturn(database.dsn, "status")
    assert (code, out) == (0, "")
    assert "inturn topic create" in err


@pytest.mark.parametrize("analyzed", [True, False])
def test_the_recent_turns_are_found_without_reading_the_old_ones(database: Database, analyzed: bool) -> None:
    database.execute("""
        SELECT inturn.create_topic('shop');
        INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier,
            started_at, finished_at)
        SELECT 'shop', 'k' || n, 1, 1, 1, 1, true, 'applied', 'test', t, t
        FROM generate_series(1, 100000) n, LATERAL (SELECT now() - (100000 - n) * interval '1 s') x (t);
        SELECT brin_summarize_new_values('inturn.turn_finished');
    """)
    assert 250 < database.value("SELECT applied FROM inturn.topic_status('shop')") <= 300
    source = database.value("SELECT prosrc FROM pg_proc WHERE oid = 'inturn.topic_status'::regproc")
    recent = source[source.index("SELECT r.topic") : source.index("GROUP BY")] + "GROUP BY r.topic"
    if analyzed:
        database.execute("ANALYZE inturn.turn")
    with database.connect(autocommit=False, user=OWNER) as connection:
        connection.execute("SET enable_seqscan = off")
        plan = explain(connection, recent.replace("recent", "interval '5 min'"))
    assert "turn_finished" in [step.get("Index Name") for step in nodes(plan)]
    scan = next(step for step in nodes(plan) if step["Node Type"] == "Bitmap Heap Scan")
    assert scan["Rows Removed by Index Recheck"] < 30_000


def test_leases_and_gaps_are_counted_and_an_applier_by_lease_is_shown(orders: Database) -> None:
    orders.execute(
        "SELECT inturn.create_topic('given', 'http://b.internal/', numbering => 'given', lease => '1 hour')"
    )
    for key, seq in (("gap", 2), ("one", 1), ("two", 1)):
        orders.execute("SELECT inturn.append('given', %s, 'insert', seq => %s)", [key, seq])
    orders.execute(
        "SELECT FROM inturn.claim(topics => '{given}', max_keys => 9, lease => NULL, applier => 'node:7')"
    )
    document = _read(orders, "--topic", "given")
    (topic,) = document["topics"]
    counted = ("waiting", "leased", "ready", "pending", "exact")
    assert [topic[name] for name in counted] == [1, 2, 0, 3, True]
    (applier,) = document["appliers"]
    assert (applier["applier"], applier["doing"], applier["key"], applier["leases"]) == (
        *("node:7", "applying", "one"),
        2,
    )
    code, out, err = run_inturn(orders.dsn, "status")
    assert (code, err) == (0, "")
    assert "waiting" in out.splitlines()[0]
    assert "leased" in out.splitlines()[0]
    assert "node:7" in out
    assert "applying 2 keys" in out
    assert max(map(len, out.splitlines())) <= 90


UNHEALTHY = 9


def test_check_says_what_is_wrong_and_nothing_else(orders: Database) -> None:
    def checked(*args: str) -> tuple[int, str]:
        code, out, err = run_inturn(orders.dsn, "status", "--check", *args)
        assert err == ""
        return code, out

    nobody = "topic orders: 2 keys are ready or retrying, and no applier of it is alive\n"
    assert checked() == (UNHEALTHY, nobody)
    assert checked("--topic", "bills") == (0, ""), "nothing is pending there"
    (problem,) = json.loads(checked("--json")[1])["problems"]
    assert (problem["topic"], problem["problem"]) == ("orders", "no_applier")
    orders.execute("SELECT inturn.pause_topic('orders')")
    assert checked() == (0, ""), "nobody is needed"
    orders.execute("SELECT inturn.resume_topic('orders')")
    applier = orders.connect(user=APPLIER)
    announce = "SELECT inturn.announce_applier('node:7', '{orders}', 'b1', 1, %s)"
    applier.execute(announce, ["0001"])
    assert checked() == (0, "")
    applier.execute(announce, ["0000"])
    assert checked() == (UNHEALTHY, nobody), "it serves another revision"
    applier.execute(announce, ["0001"])
    assert checked("--older-than", "1h") == (0, "")
    orders.execute("UPDATE inturn.command_log SET created_at = now() - interval '2 h' WHERE key = 'f'")
    too_old = "topic orders: a command has been pending for 2h, longer than 1h\n"
    assert checked("--older-than", "1h") == (UNHEALTHY, too_old)
    assert checked("--older-than", "3 hours") == (0, "")


def test_a_wrong_option_is_named(database: Database) -> None:
    for args, word in (
        (("--older-than", "10m"), "--check"),
        (("--check", "--older-than", "10x"), "--older-than cannot be '10x'"),
        (("--check", "--watch"), "--check"),
        (("--watch",), "terminal"),
    ):
        code, out, err = run_inturn(database.dsn, "status", *args)
        assert (code, out) == (2, ""), args
        assert word in err


def test_watch_sums_up_again_until_ctrl_c(orders: Database) -> None:
    terminal = Terminal(orders.dsn, "status", "--watch", "0.1")
    terminal.read("no applier is alive")
    orders.execute("SELECT inturn.create_topic('fresh')")
    terminal.read("fresh")
    terminal.interrupt()
    assert terminal.exit_code() == 0
    assert "Traceback" not in terminal.printed
