"""`inturn verify`: what it prints, and how it ends."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from support.database import Database, until
from support.plants import PLANTS
from support.process import InturnProcess, run_inturn
from support.terminal import on_terminal


def test_the_command_counts_what_it_read_and_finds_nothing(history: Database) -> None:
    code, out, err = run_inturn(history.dsn, "verify")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"verified 5 keys, 16 commands, 8 turns in [\d.]+ s: no violation\n", out)
    code, out, _ = run_inturn(history.dsn, "verify", "--topic", "orders", "--key", "a", "--json")
    assert code == 0
    assert {k: v for k, v in json.loads(out).items() if k != "seconds"} == {
        "keys": 1,
        "commands": 12,
        "turns": 6,
        "found": 0,
        "violations": [],
        "warnings": [],
    }


@pytest.mark.parametrize(
    "planted", ["a number lost", "a number applied twice", "an operator's skip lost", "a lost wake-up"]
)
def test_the_command_prints_each_violation_with_its_rows_and_exits_with_8(
    history: Database, planted: str
) -> None:
    plant, expected = PLANTS[planted]
    history.execute(plant)
    code, out, err = run_inturn(history.dsn, "verify")
    assert (code, err) == (8, "")
    for violation, _ in expected:
        assert re.search(rf"^{violation}: topic orders, key [ab]: .+\n  \w+ +\w+=", out, re.MULTILINE)
    assert f"{len(expected)} violation" in out.splitlines()[-1]
    key = "b" if "'b'" in plant else "a"
    code, out, _ = run_inturn(history.dsn, "verify", "--key", key, "--json")
    assert code == 8
    document = json.loads(out)
    assert {(each["violation"], each["seq"]) for each in document["violations"]} == expected
    assert run_inturn(history.dsn, "verify", "--key", "e")[0] == 0


def test_the_command_prints_so_many_and_counts_all(history: Database) -> None:
    history.execute("UPDATE inturn.key_sequence SET given = true")
    code, out, _ = run_inturn(history.dsn, "verify", "--limit", "2")
    assert code == 8
    assert out.count("numbering-mixed: ") == 2
    assert "... and 3 more; --limit N lists them" in out
    assert out.endswith(": 5 violations\n")


def test_what_the_command_prints_of_a_hostile_key_is_one_line_and_can_be_given_back(
    history: Database,
) -> None:
    evil = "evil\x1b[2J\u202e\n'key"
    history.execute("SELECT inturn.append('orders', %s, 'insert')", [evil])
    history.execute(
        "UPDATE inturn.key_cursor SET ready_at = NULL, last_error = E'\\x1b' WHERE key = %s", [evil]
    )
    code, out, _ = run_inturn(history.dsn, "verify")
    assert code == 8
    assert all(line.isprintable() for line in out.splitlines())
    printed = re.search(r"key (\S.*\S): it is idle", out)
    assert printed is not None
    (word,) = shlex.split(printed[1])
    code, out, _ = run_inturn(history.dsn, "verify", "--key", word)
    assert (code, "verified 1 key, 1 command, 0 turns" in out) == (8, True)


def test_a_key_or_topic_that_is_not_there_is_one_line(history: Database) -> None:
    for arguments in (("--key", "nosuch"), ("--topic", "nosuch"), ("--topic", "nosuch", "--key", "a")):
        code, out, err = run_inturn(history.dsn, "verify", *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "nosuch" in err


def test_the_command_runs_where_nothing_may_be_written(history: Database) -> None:
    assert run_inturn(history.dsn + " options='-c default_transaction_read_only=on'", "verify")[0] == 0


def test_a_connection_lost_in_the_middle_is_one_line(history: Database) -> None:
    locker = history.session()
    locker.execute("LOCK TABLE inturn.skip IN ACCESS EXCLUSIVE MODE")
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
    with InturnProcess(history.dsn, "verify") as process:
        until(lambda: history.execute(kill, [locker.pid]), "the verify blocked")
        assert process.exit_code() == 4
        assert re.fullmatch(r"inturn: the connection to the database was lost: [^\n]+\n", process.err)
        assert process.out == ""


def test_a_terminal_sees_how_far_it_is(history: Database) -> None:
    lines = on_terminal(history.dsn, "verify")
    assert "verifying" in "".join(lines[:-1])
    assert re.search(r"verified 5 keys, .*: no violation$", lines[-1])
