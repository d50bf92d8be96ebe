"""`inturn keys`: its filters, --check, --watch, and how it looks on a terminal."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest
from support.database import Database
from support.process import run_inturn
from support.race import replaced
from support.terminal import Terminal, on_terminal

EVIL = "evil\x1b[2J\u202e\nkey\\"


@pytest.fixture
def orders(witness: Database) -> Database:
    """A held, a retrying, a paused, a ready and an idle key in topic orders, a deep one in bills."""
    witness.execute(
        "UPDATE inturn.topic SET max_attempts = 2, backoff_base = '1 hour', backoff_cap = '1 hour'"
    )
    for key, name in (("order-42", "fail"), ("order-43", "fail"), ("order-44", "insert")):
        witness.execute("SELECT inturn.append('orders', %s, %s)", [key, name])
    witness.execute("CALL inturn.apply()")
    witness.execute("UPDATE inturn.key_cursor SET ready_at = now() WHERE key = 'order-42'")
    witness.execute("CALL inturn.apply()")
    for key in ("order-45", EVIL):
        witness.execute("SELECT inturn.append('orders', %s, 'insert')", [key])
    witness.execute("SELECT inturn.pause('orders', 'order-45', 'a test', now() + interval '3 h')")
    witness.execute("SELECT inturn.create_topic('bills')")
    witness.execute("SELECT inturn.append('bills', 'deep', 'insert') FROM generate_series(1, 120)")
    return witness


def _json(database: Database, *args: str) -> list[dict[str, Any]]:
    code, out, err = run_inturn(database.dsn, "keys", *args, "--json")
    assert code == 0, err
    rows: list[dict[str, Any]] = json.loads(out)
    return rows


def _keys(database: Database, *args: str) -> list[str]:
    return [row["key"] for row in _json(database, *args)]


#: What is asked for, and what is found.
QUESTIONS: list[tuple[tuple[str, ...], list[str]]] = [
    (("--held",), ["order-42"]),
    (("--state", "held"), ["order-42"]),
    (("--retrying",), ["order-43"]),
    (("--paused",), ["order-45"]),
    (("--ready",), [EVIL, "deep"]),
    (("--idle",), ["order-44"]),
    (("--held", "--idle"), ["order-42", "order-44"]),
    (("--topic", "bills"), ["deep"]),
    (("--like", "order-4_", "--ready", "--idle"), ["order-44"]),
    (("--lagging",), ["deep"]),
    (("--lagging", "--topic", "orders"), []),
    (("--lagging", "121"), []),
    (("--lagging", "1", "--held"), ["order-42"]),
    (("--sort", "lag", "--limit", "1"), ["deep"]),
    (("--sort", "attempts", "--limit", "2"), ["order-42", "order-43"]),
    (("--older-than", "2h"), []),
]


def test_keys_are_found_by_state_topic_name_lag_and_age(orders: Database) -> None:
    for args, keys in QUESTIONS:
        assert _keys(orders, *args) == keys, args


def test_spans_are_written_shortly_or_as_postgresql_reads_them(orders: Database) -> None:
    orders.execute("UPDATE inturn.command_log SET created_at = now() - interval '90 min' WHERE key = 'deep'")
    for span in ("90s", "10m", "1h", "1 hour 5 min", "PT10M"):
        assert _keys(orders, "--older-than", span) == ["deep"], span
    assert _keys(orders, "--sort", "age")[0] == "deep"


#: Wrong options, and what the answer names.
MISTAKES: list[tuple[tuple[str, ...], str]] = [
    (("--older-than", "10x"), "10m"),
    (("--lagging", "0"), "lagging"),
    (("--sort", "key"), "sort"),
    (("--check",), "--held"),
    (("--check", "--topic", "orders"), "--held"),
    (("--watch", "--held"), "terminal"),
    (("--watch", "inf"), "range"),
]


def test_a_wrong_option_is_one_line_that_says_what_is_right(database: Database) -> None:
    for args, word in MISTAKES:
        code, out, err = run_inturn(database.dsn, "keys", *args)
        assert (code, out) == (2, ""), args
        assert re.fullmatch(r"inturn: [^\n]+\n", err), args
        assert word in err


def test_check_exits_with_7_when_there_are_such_keys_and_is_silent_when_not(orders: Database) -> None:
    code, out, err = run_inturn(orders.dsn, "keys", "--held", "--check")
    assert (code, err) == (7, "")
    assert "order-42" in out
    assert run_inturn(orders.dsn, "keys", "--held", "--check", "--topic", "bills") == (0, "", "")
    assert run_inturn(orders.dsn, "keys", "--lagging", "121", "--check") == (0, "", "")
    assert run_inturn(orders.dsn, "keys", "--lagging", "120", "--check", "--json")[0] == 7
    assert run_inturn("host=127.0.0.1 port=1", "keys", "--held", "--check")[0] == 4


def test_check_is_not_silent_where_not_all_keys_were_looked_at(orders: Database) -> None:
    orders.execute("SELECT inturn.append('orders', 'more' || n, 'insert') FROM generate_series(1, 3) n")
    check = ("keys", "--lagging", "121", "--limit", "1", "--check")
    assert run_inturn(orders.dsn, *check) == (0, "", "")
    with replaced(orders, "list_keys", ("200000", "1")):
        code, out, err = run_inturn(orders.dsn, *check)
    assert (code, out) == (7, "")
    assert err.startswith("inturn: more than 2 ready keys in topic 'orders': only the first 2 of each topic")


def test_a_pipe_gets_every_column_and_keys_that_can_be_given_back(orders: Database) -> None:
    long = "k" * 512
    orders.execute("SELECT inturn.append('orders', %s, 'insert')", [long])
    _, out, _ = run_inturn(orders.dsn, "keys")
    heading, *lines = out.splitlines()
    assert heading.split() == [
        *("topic", "key", "state", "applied", "lag", "age"),
        "attempts",
        "next",
        "try",
        "error",
    ]
    assert out.isascii()
    assert long in out
    held, retrying, paused = lines[:3]
    assert re.fullmatch(r"orders +order-42 +held +0/1 +1 +\d+s +2 +refused order-42.*", held)
    # From half of the hour that was set, less what the test has taken since.
    assert re.fullmatch(
        r"orders +order-43 +retrying +0/1 +1 +\d+s +1 +in [2-6]\dm +refused order-43.*", retrying
    )
    assert re.fullmatch(r"orders +order-45 +paused +0/1 +1 +\d+s +in 2h", paused)
    (evil,) = [line for line in lines if "evil" in line]
    (typed,) = [word for word in shlex.split(evil) if "evil" in word]
    assert run_inturn(orders.dsn, "why", "--topic", "orders", typed)[0] == 0


def test_the_table_holds_at_80_columns_and_gives_long_keys_whole_below(orders: Database) -> None:
    long = "k" * 200
    orders.execute("SELECT inturn.create_topic(%s)", ["t" * 100])
    for key in (long, EVIL * 20):
        orders.execute("SELECT inturn.append(%s, %s, 'insert')", ["t" * 100, key])
    lines = on_terminal(orders.dsn, "keys")
    assert all(line.isprintable() for line in lines)
    whole = [line for line in lines if len(line) > 80]
    assert f"  {long}" in whole
    assert len(whole) == 2
    assert all(line.startswith("  ") for line in whole)
    assert lines[0].split()[:3] == ["topic", "key", "state"]
    assert lines[1].split()[:3] == ["orders", "order-42", "held"]
    assert lines[2].startswith("  refused order-42")


def test_a_paused_topic_shows_on_its_keys(orders: Database) -> None:
    orders.execute("SELECT inturn.pause_topic('bills', 'a test')")
    _, out, _ = run_inturn(orders.dsn, "keys", "--ready")
    assert "topic paused" in next(line for line in out.splitlines() if "deep" in line)
    assert "paused" not in next(line for line in out.splitlines() if "evil" in line)
    assert [(row["state"], row["topic_paused"]) for row in _json(orders, "--topic", "bills")] == [
        ("ready", True)
    ]


def test_watch_lists_again_until_ctrl_c(orders: Database) -> None:
    terminal = Terminal(orders.dsn, "keys", "--watch", "0.1", "--topic", "bills")
    terminal.read("deep .*0/120")
    orders.execute("SELECT inturn.append('bills', 'fresh', 'insert')")
    terminal.read("fresh")
    terminal.interrupt()
    assert terminal.exit_code() == 0
    assert "Traceback" not in terminal.printed


def test_watch_ends_in_one_line_when_the_database_goes(orders: Database) -> None:
    terminal = Terminal(orders.dsn, "keys", "--watch", "0.1")
    terminal.read("order-42")
    orders.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'inturn'"
    )
    assert terminal.exit_code() == 4
    assert "inturn: the connection to the database was lost" in terminal.printed


def test_what_was_sorted_among_the_first_only_is_said(orders: Database) -> None:
    orders.execute("""
        INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at)
        SELECT 'bills', 'many' || n, 0, 0, now() FROM generate_series(1, 20001) n
    """)
    _, _, err = run_inturn(orders.dsn, "keys", "--sort", "age", "--limit", "3")
    assert err.splitlines() == [
        "inturn: more than 20000 keys of a state: sorted among the worst 20000 of each",
        "inturn: there are more than 3; --limit N lists more",
    ]


def test_leased_and_waiting_keys_are_listed_and_checked(orders: Database) -> None:
    assert _keys(orders, "--waiting") == _keys(orders, "--leased") == []
    orders.execute("SELECT inturn.create_topic('given', numbering => 'given', gap_timeout => '3 hours')")
    for key, seq in (("gap", 2), ("one", 1)):
        orders.execute("SELECT inturn.append('given', %s, 'insert', seq => %s)", [key, seq])
    claim = (
        "SELECT FROM inturn.claim(topics => '{given}', max_keys => 9, lease => '2 h', applier => 'node:7')"
    )
    orders.execute(claim)
    assert _keys(orders, "--waiting") == ["gap"]
    assert _keys(orders, "--leased", "--waiting") == ["gap", "one"]
    (row,) = _json(orders, "--leased")
    assert (row["claimed_by"], row["waiting_at"], row["lease_until"] is None) == ("node:7", None, False)
    heading, gap, one = run_inturn(orders.dsn, "keys", "--topic", "given")[1].splitlines()
    assert heading.split() == ["topic", "key", "state", "applied", "lag", "age", "next", "try", "by"]
    assert re.fullmatch(r"given gap waiting 0/2 1 \d+s in 2h", " ".join(gap.split()))
    assert re.fullmatch(r"given one leased 0/1 1 \d+s in 1h node:7", " ".join(one.split()))
    code, out, _ = run_inturn(orders.dsn, "keys", "--waiting", "--check")
    assert (code, "gap" in out) == (7, True)


def test_failures_are_grouped_by_their_first_line(orders: Database) -> None:
    orders.execute("UPDATE inturn.topic SET max_attempts = 1")
    for n in range(3):
        orders.execute("SELECT inturn.append('bills', %s, 'x')", [f"b{n}"])
        error = f"TimeoutError: bank  timed out\n  at line {n}"
        orders.execute(
            "SELECT inturn.fail('bills', c.key, c.epoch, c.seq, %s) FROM (SELECT * FROM inturn.claim("
            " topics => '{bills}', max_keys => 1, lease => '1 h', applier => 'a') LIMIT 1) c",
            [error],
        )
    errors = _json(orders, "--errors")
    assert [(row["topic"], row["error"], row["held"], row["retrying"]) for row in errors] == [
        ("bills", "TimeoutError: bank timed out", 3, 0),
        ("orders", "refused order-42 (SQLSTATE P0001)", 1, 0),
        ("orders", "refused order-43 (SQLSTATE P0001)", 0, 1),
    ]
    assert [row["error"] for row in _json(orders, "--errors", "--error", "%-42 %")] == [errors[1]["error"]]
    assert [row["error"] for row in _json(orders, "--errors", "--like", "%-43")] == [errors[2]["error"]]
    assert sorted(_keys(orders, "--error", "%timed out")) == sorted(["deep", "b0", "b1"])
    assert _keys(orders, "--error", "refused%", "--retrying") == ["order-43"]
    assert _keys(orders, "--error", "%line 1%") == [], "of an error only the first line counts"
    code, out, _ = run_inturn(orders.dsn, "keys", "--error", "%timed out", "--check")
    assert (code, "deep" in out) == (7, True)
    terminal = Terminal(orders.dsn, "keys", "--errors")
    lines = [line.rstrip() for line in terminal.read().splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["topic", "keys", "held", "retrying", "first", "last", "last", "key"]
    assert lines[1].split()[:3] == ["bills", "3", "3"]
    assert lines[2] == "  TimeoutError: bank timed out"
    assert run_inturn(orders.dsn, "keys", "--errors", "--held")[0] == 2


def test_a_topic_that_is_mistyped_is_named_as_it_may_be_meant(orders: Database) -> None:
    for command in (("keys", "--topic"), ("status", "--topic"), ("verify", "--topic"), ("topic", "show")):
        for given, meant in (("ordres", ". Did you mean orders?"), ("zzz", ".")):
            code, out, err = run_inturn(orders.dsn, *command, given)
            assert (code, out) == (1, ""), command
            assert f"topic '{given}' does not exist{meant} List them with: inturn topic list\n" in err
