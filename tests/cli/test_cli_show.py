"""`inturn show`: a key's head, its commands, and what appliers and operators did, in their places."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest
from support.database import Database, come_first
from support.history import append, make_history
from support.process import run_inturn
from support.roles import DEPLOYER, OPERATOR
from support.terminal import EVIL, on_terminal

_SECRET = '{"card": "4111"}'


@pytest.fixture
def history(witness: Database) -> Database:
    make_history(witness)
    return witness


def show(database: Database, *args: str, code: int = 0) -> str:
    found, out, err = run_inturn(database.dsn, "show", *args)
    assert found == code, err
    return out


def read(database: Database, *args: str) -> dict[str, Any]:
    (key,) = json.loads(show(database, *args, "--json"))
    assert isinstance(key, dict)
    return key


def section(text: str, heading: str) -> list[list[str]]:
    """Return the words of the rows below a table's heading."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:1] == [heading])
    rows = lines[start + 1 :]
    return [row.split() for row in rows[: rows.index("") if "" in rows else None]]


# -- the commands


def test_every_command_says_what_became_of_it(history: Database) -> None:
    append(history, "a", "fail", "insert", "insert")
    key = read(history, "a", "--limit", "12")
    assert {(c["seq"], c["state"]) for c in key["commands"]} == {
        *((seq, "applied") for seq in (1, 2, 3, 5, 11, 12)),
        *((seq, "skipped") for seq in (4, 6, 7, 8, 9, 10)),
        *((13, "next"), (14, "pending"), (15, "pending")),
    }
    by = {c["seq"]: c["skipped_by"] for c in key["commands"]}
    assert [by[seq] for seq in (3, 4, 6, 8, 9)] == [None, "operator", "attempts", "attempts", "operator"]
    history.execute("CALL inturn.apply()")
    assert read(history, "a")["commands"][-3]["state"] == "held"
    history.execute("UPDATE inturn.topic SET max_attempts = 9, backoff_base = '1 minute'")
    history.execute("SELECT inturn.retry('orders', 'a')")
    history.execute("CALL inturn.apply()")
    assert read(history, "a")["commands"][-3]["state"] == "retrying"


def test_commands_around_the_cursor_are_shown_and_no_others(history: Database) -> None:
    append(history, "a", *["insert"] * 9)
    assert [c["seq"] for c in read(history, "a", "--limit", "2")["commands"]] == [11, 12, 13, 14]


def test_an_amended_or_replayed_command_is_marked(history: Database) -> None:
    rows = {row[0]: row for row in section(show(history, "a", "--limit", "12"), "seq")}
    assert rows["4"][2:6] == ["skipped", "replayed", "as", "11"]
    assert rows["11"][2:7] == ["applied", "amended,", "replay", "of", "4"]
    assert rows["5"][2] == "applied"
    assert "replay" not in rows["5"]
    commands = {c["seq"]: c for c in read(history, "a", "--limit", "12")["commands"]}
    assert (commands[4]["replayed_as"], commands[11]["replay_of"]) == (11, 4)
    assert [seq for seq, command in commands.items() if command["amended"]] == [11]
    assert "note" not in show(history, "e")


# -- payloads


@pytest.fixture
def secret(history: Database) -> Database:
    """Key s: a long payload; then one that was amended twice."""
    history.execute("SELECT inturn.append('orders', 's', 'insert', %s)", [json.dumps(["x" * 300, "tail"])])
    history.execute("SELECT inturn.append('orders', 's', 'pay', %s)", [_SECRET])
    for n in (1, 2):
        history.execute(
            "SELECT inturn.amend('orders', 's', 2, 'wrong', name => %s, payload => %s)",
            [f"repay{n}", json.dumps({"amount": n})],
        )
    return history


def test_payloads_are_short_unless_they_are_asked_for_whole(secret: Database) -> None:
    short, whole = show(secret, "s"), show(secret, "s", "--payload")
    assert "xxx…" in short
    assert "tail" not in short
    assert "4111" not in short
    assert "x" * 300 + '", "tail"]' in whole
    assert '2 repay2 {"amount": 2}\n  before it was amended: pay {"card": "4111"}\n' in whole
    assert read(secret, "s")["commands"][1]["original_payload"] == {"card": "4111"}


def test_without_payloads_there_are_none_anywhere(secret: Database) -> None:
    for arguments in (("--no-payload",), ("--no-payload", "--json"), ("--no-payload", "--error")):
        printed = show(secret, "s", *arguments)
        assert not any(word in printed for word in ("xxx", "4111", "amount", "payload")), printed
        assert "repay2" in printed


def test_numbers_that_python_does_not_know_are_shown_as_they_are(history: Database) -> None:
    huge = '{"n": 1' + "0" * 5000 + "}"
    history.execute("SELECT inturn.append('orders', 'n', 'insert', %s)", [huge])
    history.execute("SELECT inturn.amend('orders', 'n', 1, 'too much', payload => '{\"n\": 19.90}')")
    assert huge in show(history, "n", "--payload")
    assert '{"n": 19.90}' in show(history, "n", "--payload")
    assert read(history, "n")["commands"][0]["original_payload"] == {"n": "1" + "0" * 5000}


# -- the timeline


def test_turns_and_actions_stand_in_their_order(history: Database) -> None:
    key = read(history, "a", "--limit", "20")
    assert [(e["kind"], e["what"], e["from_seq"], e["to_seq"]) for e in key["timeline"]] == [
        ("turn", "applied", 11, 12),
        ("action", "amend", 11, None),
        ("action", "replay", 4, None),
        ("action", "cancel-rest", 9, None),
        ("turn", "cancelled", 7, 6),
        ("turn", "skipped", 6, 5),
        ("turn", "applied", 5, 5),
        ("action", "skip", 4, None),
        ("turn", "held", 4, 3),
        ("turn", "retrying", 1, 3),
    ]
    rows = section(show(history, "a", "--limit", "20"), "turn")
    assert [row[0] for row in rows] == [
        "10",
        "amend",
        "replay",
        "cancel-rest",
        "7",
        "5",
        "4",
        "skip",
        "2",
        "1",
    ]
    assert [len(read(history, "a", "--limit", str(n))["timeline"]) for n in (1, 4, 7)] == [1, 4, 7]


def test_an_action_says_who_did_it_and_why(history: Database) -> None:
    for name, value in (("os_user", "root@vm"), ("acting_as", "alice")):
        history.execute("SELECT set_config(%s, %s, false)", [f"inturn.{name}", value])
    history.execute("SELECT inturn.retry('orders', 'c', 'the stock is back')")
    entry = read(history, "c")["timeline"][0]
    assert (entry["what"], entry["done_by"], entry["os_user"], entry["acting_as"], entry["says"]) == (
        *("retry", OPERATOR, "root@vm", "alice"),
        "the stock is back",
    )
    row = section(show(history, "c"), "turn")[0]
    assert row[:3] == ["retry", "1", "alice"]
    assert row[-4:] == ["the", "stock", "is", "back"]


def test_errors_are_one_line_or_whole(history: Database) -> None:
    for arguments, whole in (((), False), (("--error",), True)):
        text = show(history, "c", *arguments)
        assert text.count("refused c (SQLSTATE P0001)") == 2 + whole
        assert ("CONTEXT: PL/pgSQL" in text) is whole
        assert ("\nturn 1:\n  refused c" in text) is whole


# -- the head


def test_a_pause_says_by_whom_until_when_and_why(history: Database) -> None:
    assert re.search(rf"\nstate    paused for \d+s by {OPERATOR}: not now\n", show(history, "d"))
    history.execute("SELECT inturn.pause('orders', 'e', 'the audit', '2999-01-02 03:04:05+00')")
    assert f"by {OPERATOR}, until 2999-01-02 03:04:05 UTC: the audit\n" in show(history, "e")
    assert read(history, "e")["pause"]["reason"] == "the audit"
    history.execute("SELECT inturn.resume('orders', 'e')")
    assert "\nstate    idle\n" in show(history, "e")
    assert read(history, "e")["pause"] is None
    history.execute("SELECT inturn.pause_topic('orders', 'the move')")
    text = show(history, "e")
    assert re.match(rf"topic    orders, paused for \d+s by {DEPLOYER}: the move\n", text)
    assert "\nstate    idle\n" in text
    history.execute("UPDATE inturn.topic SET paused_until = now() - interval '1 s'")
    assert show(history, "e").startswith("topic    orders\n")


def test_a_key_is_printed_so_that_it_can_be_given_back(history: Database) -> None:
    keys = [EVIL, "it's", 'a "b"', r"back\slash", "-x", "k" * 512]
    for key in keys:
        append(history, key, "insert")
        history.execute("SELECT inturn.pause('orders', %s, %s)", [key, EVIL])
        (word,) = shlex.split(show(history, "--", json_safe(key)).splitlines()[1].removeprefix("key "))
        assert json.loads(run_inturn(history.dsn, "show", "--json", "--", word)[1])[0]["key"] == key


def json_safe(key: str) -> str:
    """Return the key as `inturn show` prints it, made another way."""
    return (
        key.replace("\\", "\\\\").replace("\x1b", r"\x1b").replace("\u202e", r"\u202e").replace("\n", r"\n")
    )


@pytest.mark.parametrize("arguments", [(), ("--error", "--payload"), ("--no-payload",)])
def test_it_looks_well_at_80_columns_and_escapes_everything(
    history: Database, arguments: tuple[str, ...]
) -> None:
    history.execute("SELECT set_config('inturn.os_user', %s, false)", [EVIL * 9])
    history.execute("SELECT inturn.append('orders', %s, %s, %s)", [EVIL, EVIL, json.dumps([EVIL] * 99)])
    history.execute("SELECT inturn.amend('orders', %s, 1, %s, name => %s)", [EVIL, EVIL, EVIL * 4])
    history.execute("SELECT inturn.pause('orders', %s, %s)", [EVIL, EVIL])
    for key in (json_safe(EVIL), "a", "c"):
        lines = on_terminal(history.dsn, "show", key, "--limit", "12", *arguments)
        assert all(line.isprintable() for line in lines)
        tables = [i for i, line in enumerate(lines) if line.split()[:1] in (["seq"], ["turn"])]
        for start in tables:
            end = lines.index("", start) if "" in lines[start:] else None
            assert max(map(len, lines[start:end])) <= 80


def test_a_key_that_is_not_there_is_one_line(history: Database) -> None:
    for arguments in (("nosuch",), ("a", "--topic", "nosuch"), ("nosuch", "--topic", "orders")):
        code, out, err = run_inturn(history.dsn, "show", *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)


def test_a_login_that_may_only_look_can_show(history: Database) -> None:
    operator = history.operator_dsn + " options='-c default_transaction_read_only=on'"
    assert run_inturn(operator, "show", "a")[0] == 0


# -- leases, and numbers that callers give


@pytest.fixture
def gap(witness: Database) -> Database:
    """Key g: 5 applied, 6 filled, 7 applied, 8 and 9 missing, 10 and 12 there; first_seq is 5."""
    witness.execute(
        "SELECT inturn.create_topic('given', 'sql:app.apply_order', numbering => 'given', first_seq => 5,"
        " gap_timeout => '3 hours')"
    )
    for seq in (5, 7, 10, 12):
        witness.execute("SELECT inturn.append('given', 'g', 'insert', seq => %s)", [seq])
    witness.execute("CALL inturn.apply()")
    witness.execute("SELECT inturn.fill_gap('given', 'g', 6, 'lost')")
    witness.execute("CALL inturn.apply()")
    return witness


def test_numbers_that_nobody_appended_are_shown_in_their_places(gap: Database) -> None:
    key = read(gap, "g")
    assert key["gaps"] == [
        {"from_seq": 6, "to_seq": 6, "state": "skipped"},
        {"from_seq": 8, "to_seq": 9, "state": "missing"},
        {"from_seq": 11, "to_seq": 11, "state": "missing"},
    ]
    assert [(c["seq"], c["state"]) for c in key["commands"]] == [
        *((5, "applied"), (7, "applied"), (10, "pending"), (12, "pending"))
    ]
    assert (key["pending"], key["last_seq"], key["state"]) == (2, 12, "waiting")
    text = show(gap, "g")
    assert re.search(r"\nstate    waiting for \d+s for command 8, held in 2h\n", text)
    assert re.search(r"\napplied  7 of 12, 2 pending, the first for \d+s\n", text)
    assert [row[:3] for row in section(text, "seq")] == [
        *(["5", "insert", "applied"], ["6", "skipped", "never"], ["7", "insert", "applied"]),
        *(["8-9", "missing"], ["10", "insert", "pending"], ["11", "missing"], ["12", "insert", "pending"]),
    ]
    assert [row[0] for row in section(text, "turn")][:2] == ["3", "fill-gap"]
    assert [c["seq"] for c in read(gap, "g", "--limit", "1")["commands"]] == [7, 10]
    show(gap, "g", "--no-payload")
    gap.execute("SELECT inturn.set_topic('given', gap_timeout => '1 ms')")
    gap.execute("UPDATE inturn.key_cursor SET ready_at = clock_timestamp()")
    gap.execute("CALL inturn.apply()")
    assert re.search(r"\nstate    held for \d+s, because command 8 was not appended\n", show(gap, "g"))


def test_who_has_a_key_by_lease_is_said_and_that_it_ran_out(history: Database) -> None:
    history.execute("SELECT inturn.append('orders', 'l', 'insert')")
    come_first(history, "l")
    claim = (
        "SELECT FROM inturn.claim(topics => '{orders}', max_keys => 1, lease => '2 hours', applier => 'n')"
    )
    history.execute(claim)
    assert re.search(r"\nstate    leased\nlease    n for \d+s, for another 1h\n", show(history, "l"))
    assert read(history, "l")["claimed_by"] == "n"
    history.execute("UPDATE inturn.key_cursor SET lease_until = now() - interval '2 h' WHERE key = 'l'")
    assert re.search(r"\nlease    n for \d+s, ran out 2h ago\n", show(history, "l"))
