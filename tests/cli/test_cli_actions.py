"""The command line puts right: what is typed, printed, asked and recorded."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.database import Database
from support.forked import folder_of_inturn
from support.process import run_inturn
from support.race import blocked
from support.roles import OPERATOR

ERROR, USAGE = 1, 2
EVIL = "it's\x1b[2J \u202e\n\\key"


@pytest.fixture
def orders(witness: Database) -> Database:
    """Key x of topic orders, held at its second command of three."""
    witness.execute("UPDATE inturn.topic SET max_attempts = 1")
    hold(witness, "x")
    return witness


def hold(database: Database, key: str) -> None:
    for name in ("insert", "fail", "delete"):
        database.execute("SELECT inturn.append('orders', %s, %s, '{\"amount\": 1}')", [key, name])
    database.execute("CALL inturn.apply()")


def state(database: Database, key: str = "x") -> tuple[Any, ...]:
    return database.execute(
        "SELECT inturn.key_state(c), applied_seq FROM inturn.key_cursor c WHERE key = %s", [key]
    )[0]


def recorded(database: Database) -> int:
    return int(database.value("SELECT count(*) FROM inturn.operator_action WHERE action <> 'create'"))


def said(database: Database, *args: str, **environment: str) -> str:
    """Run a command that does it; return its one line."""
    code, out, err = run_inturn(database.dsn, *args, **environment)
    assert (code, err) == (0, ""), (out, err)
    return out.removesuffix("\n")


def refused(database: Database, *args: str, code: int = ERROR, **environment: str) -> str:
    """Run a command that must not do it; return its one line."""
    before = state(database), recorded(database)
    ended, out, err = run_inturn(database.dsn, *args, **environment)
    assert (ended, out) == (code, ""), err
    assert re.fullmatch(r"inturn: [^\n]+\n", err)
    assert (state(database), recorded(database)) == before
    return err


def test_each_action_says_in_a_line_what_it_did(orders: Database) -> None:
    reason = ("--reason", "ticket 99")
    assert said(orders, "amend", "x", "3", "--payload", '{"amount": 2}', *reason) == (
        "orders x: command 3 is amended; the key stays held until: inturn retry x --topic orders"
    )
    assert said(orders, "skip", "x", "--seq", "2", *reason) == "orders x: held -> ready; command 2 is skipped"
    assert said(orders, "replay", "x", "2", *reason) == "orders x: command 2 is appended again as 4"
    assert said(orders, "pause", "x") == "orders x: paused until it is resumed; appends go on"
    assert re.fullmatch(
        r"orders x: paused until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC; appends go on",
        said(orders, "pause", "x", "--until", "2h"),
    )
    assert said(orders, "resume", "x") == "orders x: paused -> ready"
    assert said(orders, "cancel-rest", "x", *reason) == (
        "orders x: ready -> idle; 2 commands, 3 to 4, are skipped"
    )
    assert (
        said(orders, "pause", "--topic", "orders")
        == "topic orders: paused until it is resumed; appends go on"
    )
    assert said(orders, "resume", "--topic", "orders") == "topic orders: resumed"
    assert (
        said(orders, "topic", "set", "orders", "--max-attempts", "7") == "topic orders: max_attempts 1 -> 7"
    )
    hold(orders, "y")
    assert said(orders, "retry", "y") == "orders y: retrying -> ready; command 2 will be tried again"
    assert orders.execute(
        "SELECT action FROM inturn.operator_action WHERE action <> 'create' ORDER BY acted_at"
    ) == [
        (action,)
        for action in (
            "amend",
            "skip",
            "replay",
            *("pause", "pause", "resume"),
            "cancel-rest",
            "pause",
            "resume",
            "set",
            "retry",
        )
    ]


def test_who_acts_is_recorded_and_printed_as_json(orders: Database) -> None:
    (action,) = json.loads(
        said(orders, "retry", "x", "--as", "ann@example.com", "--reason", "mended", "--json")
    )
    assert action["os_user"] == f"{getpass.getuser()}@{socket.gethostname()}"
    assert (action["acting_as"], action["reason"], action["dry_run"]) == ("ann@example.com", "mended", False)
    assert (action["before"]["state"], action["after"]["state"]) == ("held", "ready")
    assert orders.execute(
        "SELECT db_user, os_user, acting_as FROM inturn.operator_action WHERE action <> 'create'"
    ) == [(OPERATOR, action["os_user"], "ann@example.com")]


@pytest.mark.parametrize(
    "args",
    [
        ("retry", "x"),
        ("retry", "--all"),
        ("skip", "x", "--seq", "2", "--reason", "r"),
        ("replay", "x", "1", "--reason", "r"),
        ("amend", "x", "2", "--name", "update", "--reason", "r"),
        ("cancel-rest", "x", "--reason", "r"),
        ("pause", "--topic", "orders"),
        ("topic", "set", "orders", "--max-attempts", "3"),
    ],
    ids=" ".join,
)
def test_a_dry_run_says_the_same_and_changes_nothing(orders: Database, args: tuple[str, ...]) -> None:
    before = state(orders), recorded(orders)
    would = said(orders, *args, "--dry-run")
    assert (state(orders), recorded(orders)) == before
    assert would.startswith("dry run, nothing changed: ")
    yes = ("--yes",) if "--all" in args else ()
    assert said(orders, *args, *yes) == would.removeprefix("dry run, nothing changed: ")


def test_a_key_is_taken_as_it_is_printed(orders: Database) -> None:
    hold(orders, EVIL)
    listed = json.loads(
        subprocess.run(
            ["bash", "-c", f"{folder_of_inturn()}/inturn keys --held --json"],
            capture_output=True,
            check=True,
            env={**os.environ, "INTURN_DSN": orders.operator_dsn},
        ).stdout
    )
    assert {key["key"] for key in listed} == {"x", EVIL}
    printed = (
        said(orders, "retry", r"it's\x1b[2J \u202e\n\\key", "--dry-run")
        .split("orders ")[1]
        .rpartition(": held")[0]
    )
    again = subprocess.run(
        ["bash", "-c", f"{folder_of_inturn()}/inturn retry {printed}"],
        capture_output=True,
        check=False,
        text=True,
        env={**os.environ, "INTURN_DSN": orders.operator_dsn},
    )
    assert (again.returncode, again.stderr) == (0, "")
    assert state(orders, EVIL)[0] == "ready"
    assert state(orders)[0] == "held"


def test_a_key_of_several_topics_needs_the_topic(orders: Database) -> None:
    orders.execute("SELECT inturn.create_topic('bills', 'sql:app.apply_order', max_attempts => 1)")
    orders.execute("SELECT inturn.append('bills', 'x', 'fail')")
    orders.execute("CALL inturn.apply()")
    assert "is in several topics: bills, orders. Name one with --topic" in refused(orders, "retry", "x")
    assert said(orders, "retry", "x", "--topic", "orders").startswith("orders x: held -> ready")
    assert orders.value("SELECT held_at IS NOT NULL FROM inturn.key_cursor WHERE topic = 'bills'")


def test_what_makes_no_sense_is_refused_in_a_line_that_names_the_thing(orders: Database) -> None:
    assert "no topic has a key nobody. Look for keys like it with: inturn why nobody" in refused(
        orders, "retry", "nobody"
    )
    assert "topic 'bills' does not exist" in refused(orders, "retry", "x", "--topic", "bills")
    assert "has 2 as its next command, not 1" in refused(orders, "skip", "x", "--seq", "1", "--reason", "r")
    assert "is held: it stands still already" in refused(orders, "pause", "x")
    assert "is held, not paused" in refused(orders, "resume", "x")
    assert "--until soon is not a time" in refused(orders, "pause", "x", "--until", "soon", code=USAGE)
    assert "Missing option '--reason'" in refused(orders, "skip", "x", "--seq", "2", code=USAGE)
    assert "was given no reason" in refused(orders, "skip", "x", "--seq", "2", "--reason", " ")
    assert "Give a KEY, or --all" in refused(orders, "retry", code=USAGE)
    assert "Give a KEY, or --topic" in refused(orders, "pause", code=USAGE)
    assert "Give a setting to change" in refused(orders, "topic", "set", "orders", code=USAGE)
    assert "payload is not JSON" in refused(orders, "amend", "x", "2", "--payload", "{", "--reason", "r")
    huge = ("--seq", "9" * 19)
    assert "out of range" in refused(orders, "skip", "x", *huge, "--reason", "r", code=USAGE)
    assert "out of range" in refused(
        orders, "amend", "x", "9" * 30, "--name", "n", "--reason", "r", code=USAGE
    )
    empty = ("--name", "update", "--payload", "")
    assert "payload is not JSON" in refused(orders, "amend", "x", "2", *empty, "--reason", "r")
    assert "permission denied" in refused(orders, "--dsn", orders.caller_dsn, "retry", "x")
    assert "read-only transaction" in refused(
        orders, "retry", "x", PGOPTIONS="-c default_transaction_read_only=on"
    )


def test_a_key_in_other_hands_is_waited_for_no_longer_than_the_timeout(orders: Database) -> None:
    holder = orders.session(application_name="night shift")
    holder.execute("SELECT FROM inturn.ticket WHERE key = 'x' FOR UPDATE")
    line = refused(orders, "retry", "x", "--timeout", "0.05")
    assert f"is in hand: night shift (backend {holder.pid} of" in line
    assert line.endswith(
        "Waited for 50ms; try again, or end that session:"
        f' psql "$INTURN_DSN" -c "SELECT pg_terminate_backend({holder.pid})"\n'
    )


def test_of_two_operators_one_wins_and_the_other_is_told_what_changed(orders: Database) -> None:
    other = orders.session()
    other.execute("SET inturn.acting_as = 'ann'")
    other.execute("SELECT inturn.retry('orders', 'x', 'mended')")
    mine = orders.session()
    waiting = mine.begin("SELECT inturn.retry('orders', 'x')")
    assert blocked(orders, mine, waiting)
    other.commit()
    assert waiting.exception() is not None
    line = refused(orders, "retry", "x")
    assert re.search(
        r"is ready: there is no failed command to retry"
        r" \(the last action on it: retry of 2 by ann at .*, mended\)",
        line,
    )


def on_terminal(
    database: Database, answer: bytes, *args: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run it with a terminal for its questions."""
    here, there = os.openpty()
    os.write(here, answer)
    try:
        return subprocess.run(
            [folder_of_inturn() / "inturn", *args],
            stdin=there,
            capture_output=True,
            check=False,
            text=True,
            env={**os.environ, "INTURN_DSN": database.operator_dsn, **environment},
        )
    finally:
        os.close(here)
        os.close(there)


def test_retry_all_asks_with_the_count_and_needs_yes_where_nobody_answers(orders: Database) -> None:
    hold(orders, "y")
    assert "2 held keys would be retried, and there is nobody to ask" in refused(
        orders, "retry", "--all", code=USAGE
    )
    no = on_terminal(orders, b"n\n", "retry", "--all")
    assert (no.returncode, no.stdout) == (ERROR, "")
    assert no.stderr.endswith("Retry 2 held keys? [y/N]: inturn: nothing was changed: you answered no\n")
    assert recorded(orders) == 0
    yes = on_terminal(orders, b"y\n", "retry", "--all", "--like", "y%")
    assert (yes.returncode, yes.stdout) == (0, "orders y: held -> ready; command 2 will be tried again\n")
    assert "Retry 1 held key?" in yes.stderr
    assert said(orders, "retry", "--all", "--yes").startswith("orders x: held -> ready")
    assert run_inturn(orders.dsn, "retry", "--all", "--yes") == (0, "", "inturn: no such keys\n")


def test_keys_that_are_held_only_after_the_question_are_asked_about_too(orders: Database) -> None:
    here, there = os.openpty()
    command = [str(folder_of_inturn() / "inturn"), "retry", "--all"]
    environment = {**os.environ, "INTURN_DSN": orders.operator_dsn}
    with subprocess.Popen(
        command, stdin=there, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as asking:
        assert asking.stderr
        assert asking.stderr.read(len("Retry 1 held key? ")) == "Retry 1 held key? "
        hold(orders, "y")
        os.write(here, b"y\nn\n")
        out, err = asking.communicate()
    assert (asking.returncode, out) == (ERROR, "")
    assert "inturn: 1 more since you were asked\nRetry 2 held keys?" in err
    assert recorded(orders) == 0
    yes = on_terminal(orders, b"y\n", "retry", "--all")
    assert yes.stdout.count("held -> ready") == 2


def test_keys_are_retried_and_cancelled_by_their_error(orders: Database) -> None:
    hold(orders, "y")
    dry = said(orders, "retry", "--all", "--error", "refused y%", "--dry-run")
    assert dry == "dry run, nothing changed: orders y: held -> ready; command 2 will be tried again"
    cancel = ("cancel-rest", "--all", "--error", "refused y%", "--reason", "r")
    assert "1 held key would be cancelled" in refused(orders, *cancel, code=USAGE)
    yes = on_terminal(orders, b"y\n", *cancel)
    assert yes.stdout == "orders y: held -> idle; 2 commands, 2 to 3, are skipped\n"
    assert "Cancel all that is pending on 1 held key? [y/N]" in yes.stderr
    assert state(orders)[0] == "held"
    assert run_inturn(orders.dsn, *cancel, "--yes") == (0, "", "inturn: no such keys\n")
    assert "--error go with --all" in refused(orders, "retry", "x", "--error", "%", code=USAGE)
    for filtered in ("--held", "--retrying"):
        assert "--retrying, --like" in refused(orders, "retry", "x", filtered, code=USAGE)
    assert "Give a KEY, or --all" in refused(orders, "cancel-rest", "--reason", "r", code=USAGE)
    bad = refused(orders, "retry", "--all", "--older-than", "5x", "--yes", code=USAGE)
    assert "--older-than cannot be '5x'" in bad


def editor(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "editor"
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)
    return str(path)


KEPT = re.compile(r"inturn: what you wrote is kept, to be given by: --payload - < (\S+)\n")


def kept(err: str) -> str:
    """Return what is in the file that was named, and remove it."""
    path = Path(KEPT.findall(err)[0])
    written = path.read_text()
    assert path.stat().st_mode & 0o077 == 0, "payloads are nobody else's"
    path.unlink()
    return written


def test_amend_edits_the_payload_in_the_users_editor(orders: Database, tmp_path: Path) -> None:
    sed = editor(
        tmp_path, 'grep -q \'"amount": 1\' "$1" || exit 9', "sed -i 's/1/12345678901234567890.10/' \"$1\""
    )
    said(orders, "amend", "x", "2", "--edit", "--name", "update", "--reason", "r", EDITOR=sed, VISUAL="")
    assert orders.execute("SELECT name, payload::text FROM inturn.command_log WHERE seq = 2") == [
        ("update", '{"amount": 12345678901234567890.10}')
    ]


@pytest.mark.parametrize(
    ("line", "says"), [(":", "was not changed in the editor"), ('echo oops > "$1"', "is not JSON")]
)
def test_an_edit_that_is_none_or_no_json_changes_nothing(
    orders: Database, tmp_path: Path, line: str, says: str
) -> None:
    code, _, err = run_inturn(
        orders.dsn, *("amend", "x", "2", "--edit", "--reason", "r"), EDITOR=editor(tmp_path, line), VISUAL=""
    )
    assert code in {ERROR, USAGE}
    assert says in err
    assert recorded(orders) == 0
    for path in KEPT.findall(err):
        Path(path).unlink()


def test_an_edit_does_not_overwrite_what_another_operator_amended_meanwhile(
    orders: Database, tmp_path: Path
) -> None:
    inturn = folder_of_inturn() / "inturn"
    meanwhile = editor(
        tmp_path,
        f"{inturn} amend x 2 --payload '{{\"amount\": 5}}' --reason first --as ann >/dev/null",
        "sed -i 's/1/2/' \"$1\"",
    )
    code, _, err = run_inturn(
        orders.dsn, *("amend", "x", "2", "--edit", "--reason", "second"), EDITOR=meanwhile, VISUAL=""
    )
    assert code == ERROR
    assert "has another payload in command 2 than it had when you looked" in err
    assert "amend of 2 by ann at" in err
    assert json.loads(kept(err)) == {"amount": 2}
    assert orders.value("SELECT payload FROM inturn.command_log WHERE seq = 2") == {"amount": 5}


@pytest.mark.parametrize(
    ("writes", "then", "because"),
    [
        ('{"amount": 2}', "exit 3", "Editing failed"),
        ("oops", "", 'Token "oops" is invalid'),
        ("NaN", "", 'Token "NaN" is invalid'),
        ('{"amount": "\\u0000"}', "", "cannot be converted to text"),
        ("[" * 500_000, "", "stack depth limit exceeded"),
        ('"' + "x" * 2_000_000 + '"', "", "max_payload_bytes"),
        ('{"amount": 1}', "", "has command 2 like that already"),
    ],
    ids=["the editor failed", "no JSON", "NaN", "NUL", "too deep", "too large", "nothing new"],
)
def test_what_was_written_in_the_editor_is_kept_where_it_is_refused(
    orders: Database, tmp_path: Path, writes: str, then: str, because: str
) -> None:
    (tmp_path / "text").write_text(writes)
    written = editor(tmp_path, f'cp {tmp_path}/text "$1"', then)
    code, out, err = run_inturn(
        orders.dsn, *("amend", "x", "2", "--edit", "--reason", "r"), EDITOR=written, VISUAL=""
    )
    assert (code, out) == (ERROR, "")
    assert because in err
    assert kept(err) == writes
    assert recorded(orders) == 0


def test_without_an_editor_or_a_terminal_for_one_it_says_what_to_do(orders: Database) -> None:
    amend = ("amend", "x", "2", "--edit", "--reason", "r")
    for given, because in (("", "there is no terminal for an editor"), ("nosuch", "nosuch: Editing failed")):
        code, out, err = run_inturn(orders.dsn, *amend, EDITOR=given, VISUAL="")
        assert (code, out) == (ERROR, ""), given
        assert err.startswith(f"inturn: {because}"), err
        assert err.endswith("or give the payload: --payload JSON\n"), err


def test_what_was_written_in_the_editor_is_kept_where_its_user_gives_up(
    orders: Database, tmp_path: Path
) -> None:
    once = editor(tmp_path, f'mkdir {tmp_path}/once && echo oops > "$1" || exit 0')
    ended = on_terminal(
        orders, b"y\nn\n", *("amend", "x", "2", "--edit", "--reason", "r"), EDITOR=once, VISUAL=""
    )
    assert ended.returncode == ERROR
    assert ended.stderr.count("is invalid. Edit it again? [Y/n]") == 2
    assert kept(ended.stderr) == "oops\n"


def test_what_was_written_in_the_editor_is_kept_by_a_dry_run_and_removed_where_it_was_done(
    orders: Database, tmp_path: Path
) -> None:
    write = editor(tmp_path, f'echo "$1" >> {tmp_path}/names', "sed -i 's/1/2/' \"$1\"")
    amend = ("amend", "x", "2", "--edit", "--reason", "r")
    code, out, err = run_inturn(orders.dsn, *amend, "--dry-run", EDITOR=write, VISUAL="")
    assert (code, out.startswith("dry run, nothing changed: orders x")) == (0, True)
    assert json.loads(kept(err)) == {"amount": 2}
    assert said(orders, *amend, EDITOR=write, VISUAL="").startswith("orders x: command 2 is amended")
    names = (tmp_path / "names").read_text().splitlines()
    assert [Path(name).exists() for name in names] == [False, False]


def test_settings_of_a_topic_are_listed_after_they_were_set(orders: Database) -> None:
    said(orders, "topic", "set", "orders", "--on-exhausted", "cancel-rest", "--backoff-cap", "1 hour")
    (topic,) = json.loads(said(orders, "topic", "list", "--json"))
    assert (topic["on_exhausted"], topic["backoff_cap_seconds"], topic["paused_at"]) == (
        "cancel-rest",
        3600,
        None,
    )
    assert "cancel-rest" in said(orders, "topic", "list")
    said(orders, "topic", "create", "bills", "--on-exhausted", "skip")
    assert orders.value("SELECT on_exhausted FROM inturn.topic WHERE name = 'bills'") == "skip"


# -- numbers that callers give


@pytest.fixture
def gap(witness: Database) -> Database:
    """Key x of topic orders, whose callers number: 1 is applied, 2 is missing, 3 is there."""
    witness.execute("DELETE FROM inturn.topic")
    witness.execute("SELECT inturn.create_topic('orders', 'sql:app.apply_order', numbering => 'given')")
    for seq in (1, 3):
        witness.execute("SELECT inturn.append('orders', 'x', 'insert', seq => %s)", [seq])
    witness.execute("CALL inturn.apply()")
    assert state(witness) == ("waiting", 1)
    return witness


def test_fill_gap_passes_over_the_missing_number_and_is_recorded(gap: Database) -> None:
    fill = ("fill-gap", "x", "--seq", "2", "--reason", "lost at A, ticket 99", "--as", "alice")
    assert said(gap, *fill, "--dry-run") == (
        "dry run, nothing changed: orders x: waiting -> ready; missing command 2 is skipped"
    )
    assert state(gap) == ("waiting", 1)
    assert said(gap, *fill) == "orders x: waiting -> ready; missing command 2 is skipped"
    assert gap.execute(
        "SELECT action, seq, reason, acting_as FROM inturn.operator_action WHERE action <> 'create'"
    ) == [("fill-gap", 2, "lost at A, ticket 99", "alice")]
    gap.execute("CALL inturn.apply()")
    assert state(gap) == ("idle", 3)
    assert "waits for no number" in refused(gap, "fill-gap", "x", "--seq", "4", "--reason", "no")


def test_fill_gap_of_what_is_no_gap_is_refused(gap: Database) -> None:
    assert "has command 3: it is not missing" in refused(gap, "fill-gap", "x", "--seq", "3", "--reason", "no")
    assert "waits for 2, not 4" in refused(gap, "fill-gap", "x", "--seq", "4", "--reason", "no")
    refused_usage = run_inturn(gap.dsn, "fill-gap", "x", "--seq", "2")
    assert (refused_usage[0], "--reason" in refused_usage[2]) == (USAGE, True)
    caller = gap.session()
    caller.execute("SELECT inturn.append('orders', 'x', 'insert', seq => 2)")
    busy = refused(gap, "fill-gap", "x", "--seq", "2", "--reason", "no", "--timeout", "0.05")
    assert f"is in hand: a session (backend {caller.pid}" in busy


def test_a_key_in_an_appliers_lease_is_busy_and_says_whose(gap: Database) -> None:
    gap.execute("SELECT inturn.append('orders', 'x', 'insert', seq => 2)")
    gap.execute(
        "SELECT FROM inturn.claim(topics => '{orders}', max_keys => 1, lease => NULL, applier => 'node:7')"
    )
    busy = refused(gap, "skip", "x", "--seq", "2", "--reason", "no", "--timeout", "0.05")
    assert "is in hand: leased by node:7 until" in busy
