"""`inturn apply --processes`: several processes share the work, and end together, whichever way one ends."""

from __future__ import annotations

import json
import os
import signal

import pytest
from support.crowd import Crowd
from support.database import Database, set_revision, until
from support.oracle import Oracle
from support.process import InturnProcess, inturn_apply, run_apply, run_inturn
from support.processes import (
    TWO,
    applying_pid,
    both_busy,
    children_of,
    is_there,
    one_line,
    wait_gone,
    wait_serving,
)
from support.shop import (
    append,
    append_keys,
    applied,
    assert_once_and_in_turn,
    count_applied,
    gate_shut,
    open_shop,
    wait_at_gate,
)


def test_a_drain_by_two_processes_applies_everything_once_and_in_turn(database: Database) -> None:
    open_shop(database, settings="batch_commands => 2")
    with gate_shut(database) as gate, both_busy(database, "--drain", "--workers", "1") as process:
        for _ in range(4):
            append_keys(database, 100)
        gate.rollback()
        assert process.exit_code() == 0
        assert "applied 402 commands in " in process.out
        assert process.out.count("\n") == 1
        assert "workers=1 processes=2" in process.err
    assert run_apply(database.dsn, "--drain")[0] == 0  # what one of them put off by some milliseconds
    took_turns = "SELECT count(DISTINCT split_part(applier, ':', 2)) FROM inturn.turn"
    assert database.value(took_turns) >= 2
    assert_once_and_in_turn(database)


def test_under_load_the_oracle_sees_no_broken_promise_whichever_process_dies(witness: Database) -> None:
    oracle, crowd = Oracle(witness), Crowd(witness)
    with (
        InturnProcess(witness.dsn, "apply", "--processes", "3", "--workers", "2") as process,
        oracle.watching(),
    ):
        wait_serving(witness, 3)
        crowd.call(4, "'orders', 50, 40")
        os.kill(children_of(process.pid)[1].pid, signal.SIGKILL)
        crowd.call(4, "'orders', 50, 40")
        assert process.exit_code() == 1
        assert "process 2 of 3 (pid " in one_line(process.err, "was killed by SIGKILL")
    assert run_inturn(witness.dsn, "apply", "--drain", *TWO)[0] == 0
    # A drain does not wait for a key that somebody has by lease, as the process that died may have had one.
    leased = "SELECT count(*) FROM inturn.key_cursor WHERE lease_until > clock_timestamp()"
    until(lambda: not witness.value(leased), "no lease of the process that died")
    assert run_inturn(witness.dsn, "apply", "--drain")[0] == 0
    assert oracle.check_drained() > 400


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_summary_is_the_sum_of_all_processes_and_counts_held_keys_once(
    database: Database, log_format: str
) -> None:
    open_shop(database, settings="max_attempts => 1")
    database.execute("""
        SELECT inturn.create_topic('other', 'sql:app.apply', max_attempts => 1, on_exhausted => 'skip');
        SELECT inturn.append('other', 's', 'fail')""")
    with (
        gate_shut(database) as gate,
        both_busy(database, "--drain", "--log-format", log_format) as process,
    ):
        append_keys(database, 3, prefix="bad", name="fail")
        append_keys(database, 50)
        gate.rollback()
        assert process.exit_code() == 3
        (line,) = process.out.splitlines()
    if log_format == "json":
        summary = json.loads(line)
        assert (summary["commands"], summary["failures"], summary["skipped"]) == (52, 4, 1)
        assert (summary["held"], summary["cut"], summary["level"]) == (3, False, "INFO")
        assert line.startswith('{"time": ')
    else:
        assert line.startswith("applied 52 commands in ")
        assert line.endswith(", 4 failed, 1 skipped, 3 keys held: see inturn keys --held")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_commands_in_hand_end(database: Database, number: signal.Signals) -> None:
    open_shop(database)
    with gate_shut(database) as gate, both_busy(database) as process:
        children = children_of(process.pid)
        process.send(number)
        gate.rollback()
        assert process.exit_code() == 0
        assert "applied 2 commands in " in process.out
        assert not any(map(is_there, children))
    assert_once_and_in_turn(database)


def test_a_signal_to_all_processes_is_one_request_to_stop(database: Database) -> None:
    open_shop(database)
    with gate_shut(database) as gate, both_busy(database, "--processes", "3") as process:
        busy = {applying_pid(database, backend) for backend in wait_at_gate(database, 2)}
        children = children_of(process.pid)
        (idle,) = [each for each in children if each.pid not in busy]
        # As Ctrl-C in a terminal does, and systemd: the parent passes on what each has got already.
        for pid in (*busy, process.pid):
            os.kill(pid, signal.SIGINT)
        wait_gone([idle])  # which has it from the parent alone: so the others have it from there too
        gate.rollback()
        assert process.exit_code() == 0
        assert "applied 2 commands in " in process.out
    assert_once_and_in_turn(database)


@pytest.mark.parametrize(
    ("grace", "signals"), [("60", [signal.SIGTERM, signal.SIGINT]), ("0.1", [signal.SIGTERM])]
)
def test_a_second_signal_or_the_end_of_the_grace_cuts_off_the_commands_in_hand(
    database: Database, grace: str, signals: list[signal.Signals]
) -> None:
    open_shop(database)
    with gate_shut(database), both_busy(database, "--grace", grace) as process:
        for number in signals:
            process.send(number)
        assert process.exit_code() == 6
        assert "cut off a command when the grace was over" in process.out
    assert count_applied(database) == 0
    assert run_apply(database.dsn, "--drain", *TWO)[0] == 0
    assert_once_and_in_turn(database)


def test_max_seconds_ends_all_processes(database: Database) -> None:
    open_shop(database)
    with inturn_apply(database.dsn, *TWO, "--max-seconds", "0.1") as process:
        assert process.exit_code() == 0
        assert "applied 0 commands in " in process.out


def test_a_process_that_is_asked_to_end_takes_the_others_along(database: Database) -> None:
    open_shop(database)
    with inturn_apply(database.dsn, *TWO) as process:
        os.kill(wait_serving(database)[0], signal.SIGTERM)
        assert process.exit_code() == 0
        assert "applied 0 commands in " in process.out


def test_a_killed_process_ends_the_others_in_peace_and_nothing_is_lost(database: Database) -> None:
    open_shop(database)
    with gate_shut(database) as gate, both_busy(database) as process:
        backend = wait_at_gate(database, 2)[0]
        pid = applying_pid(database, backend)
        os.kill(pid, signal.SIGKILL)
        until(lambda: "SIGKILL" in process.err, "the death is told at once")
        gate.rollback()
        assert process.exit_code() == 1
        line = one_line(process.err, f"(pid {pid}) was killed by SIGKILL, by hand or because memory ran out")
        assert " error process " in line
        done = count_applied(database)  # the other one may have taken the key before it was asked to end
        assert process.out.startswith(f"applied {done} command")
        assert done in {1, 2}
    # What it had in hand is free once its lease of a second is over.
    until(lambda: run_apply(database.dsn, "--drain")[0] or count_applied(database) == 2, "its lease over")
    assert_once_and_in_turn(database)


def test_a_command_that_kills_its_process_fails_the_drain(database: Database) -> None:
    open_shop(database)
    append(database, "a", "die")
    code, _, err = run_apply(database.dsn, "--drain", "--log-format", "json", *TWO)
    assert code == 1
    records = [json.loads(line) for line in err.splitlines()]
    # The command is ready again at once: the other process may have taken it before it was asked to end.
    died = [record["message"] for record in records if record["level"] == "ERROR"]
    assert len(died) in {1, 2}
    assert all("was killed by SIGKILL" in message for message in died)
    assert count_applied(database) == 0


def test_processes_whose_parent_was_killed_end_after_the_commands_in_hand(database: Database) -> None:
    open_shop(database)
    with gate_shut(database) as gate, both_busy(database) as process:
        children = children_of(process.pid)
        append_keys(database, 20, prefix="later")
        process.kill()
        until(lambda: process.err.count("that started this one is gone") == 2, "they know")
        assert all(map(is_there, children))
        gate.rollback()
        wait_gone(children)
    assert applied(database, "a") == applied(database, "b") == [1]
    assert run_apply(database.dsn, "--drain")[0] == 0
    assert_once_and_in_turn(database)


def test_processes_whose_parent_was_killed_end_when_the_grace_is_over(database: Database) -> None:
    open_shop(database)
    with gate_shut(database), both_busy(database, "--grace", "0.1") as process:
        children = children_of(process.pid)
        process.kill()
        wait_gone(children)
    assert count_applied(database) == 0


def test_a_schema_that_no_longer_fits_ends_all_processes(database: Database) -> None:
    open_shop(database)
    with inturn_apply(database.dsn, *TWO) as process:
        wait_serving(database)
        set_revision(database, "9999")
        assert process.exit_code() == 5
        one_line(process.err, "newer than")
