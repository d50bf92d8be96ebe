"""psql as the worker: CALL inturn.apply(), with no Python at all."""

from __future__ import annotations

import subprocess

import pytest
from support.database import Database, until
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


def _psql(database: Database, *commands: str) -> subprocess.CompletedProcess[str]:
    args = [f"--command={command}" for command in commands]
    path = database.server.binaries / "psql"
    return subprocess.run(
        [str(path) if path.exists() else "/usr/bin/psql", "-X", "-At", *args, database.applier_dsn],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_psql_drains_and_says_how_much(database: Database) -> None:
    open_shop(database, target="sql", settings="max_attempts => 1")
    append_keys(database, 100)
    append(database, "a", "fail", "insert")
    done = _psql(database, "CALL inturn.apply()")
    assert (done.returncode, done.stdout, done.stderr) == (0, "100|1\n", "")
    assert applied(database, "a") == []
    assert _psql(database, "CALL inturn.apply()").stdout == "0|0\n"


def test_what_came_before_a_failed_command_is_counted_as_applied(database: Database) -> None:
    open_shop(database, target="sql", settings="max_attempts => 1")
    append(database, "a", "insert", "insert", "fail", "insert")
    assert database.execute("CALL inturn.apply()") == [(2, 1)]


def test_max_seconds_cuts_a_deep_key_and_the_next_run_goes_on(database: Database) -> None:
    open_shop(database, target="sql", settings="batch_commands => 5")
    append(database, "deep", *["slow"] * 60)
    append(database, "deep", *["insert"] * 5)
    done = _psql(database, "CALL inturn.apply(max_seconds => 0.3)")
    assert done.returncode == 0
    first = len(applied(database, "deep"))
    assert 0 < first < 60
    assert done.stdout == f"{first}|0\n"
    assert _psql(database, "CALL inturn.apply(max_seconds => 60)").stdout == f"{65 - first}|0\n"
    assert_once_and_in_turn(database)


def test_psqls_that_overlap_share_the_work(database: Database) -> None:
    open_shop(database, target="sql")
    append(database, "a", "after", "insert")
    with gate_shut(database):
        session = database.session(autocommit=True)
        first = session.begin("CALL inturn.apply()")
        wait_at_gate(database)
        append_keys(database, 300)
        assert _psql(database, "CALL inturn.apply()").stdout == "300|0\n"
    assert first.result() == [(2, 0)]
    assert_once_and_in_turn(database)


def test_apply_commits_as_it_goes(database: Database) -> None:
    open_shop(database, target="sql", settings="batch_commands => 1")
    append(database, "a", "insert", "after")
    with gate_shut(database):
        session = database.session(autocommit=True)
        running = session.begin("CALL inturn.apply()")
        wait_at_gate(database)
        assert applied(database, "a") == [1], "visible to others while the call goes on"
    running.result()


def test_apply_in_a_transaction_block_is_refused_and_applies_nothing(database: Database) -> None:
    open_shop(database, target="sql")
    append(database, "a", "insert")
    done = _psql(database, "BEGIN; CALL inturn.apply(); COMMIT")
    assert done.returncode != 0
    assert "invalid transaction termination" in done.stderr
    assert count_applied(database) == 0


def test_apply_by_a_killed_psql_leaves_nothing_half_done(database: Database) -> None:
    open_shop(database, target="sql")
    append(database, "a", "insert", "after", "insert")
    with gate_shut(database):
        path = database.server.binaries / "psql"
        psql = subprocess.Popen(
            [
                str(path) if path.exists() else "/usr/bin/psql",
                "-X",
                "-c",
                "CALL inturn.apply()",
                database.applier_dsn,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (pid,) = wait_at_gate(database)
        psql.kill()
        psql.wait()
        assert applied(database, "a") == []
    until(lambda: not database.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]), "its end")
    _psql(database, "CALL inturn.apply()")
    assert applied(database, "a") == [1, 2, 3]
    assert_once_and_in_turn(database)


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_apply_works_whatever_the_sessions_default_isolation(database: Database, level: str) -> None:
    open_shop(database, target="sql")
    append_keys(database, 50)
    done = _psql(database, f"SET default_transaction_isolation = '{level}'", "CALL inturn.apply()")
    assert done.stdout == "SET\n50|0\n"
    assert_once_and_in_turn(database)


@pytest.mark.parametrize(
    ("topics", "said"),
    [("ARRAY['nosuch']", "topic 'nosuch' does not exist"), ("ARRAY['py']", "target python")],
)
def test_apply_of_a_topic_that_sql_cannot_apply_is_refused_by_name(
    database: Database, topics: str, said: str
) -> None:
    open_shop(database, target="sql")
    database.execute("SELECT inturn.create_topic('py')")
    done = _psql(database, f"CALL inturn.apply({topics})")
    assert done.returncode != 0
    assert said in done.stderr
    assert "HINT:" in done.stderr


def test_a_statement_timeout_ends_the_call_and_is_charged_to_the_command_in_hand(database: Database) -> None:
    open_shop(database, target="sql", settings="backoff_base => '1 us'")
    append(database, "a", "insert", "after")
    with gate_shut(database):
        done = _psql(
            database,
            # Long enough to get to the gate on a slow machine.
            "SET statement_timeout = '5 s'",
            "SET inturn.careful_keys = 20",
            "CALL inturn.apply()",
        )
    assert "statement timeout" in done.stderr
    assert database.execute("SELECT applied_seq, attempts FROM inturn.key_cursor") == [(1, 1)]
    assert "canceling statement" in database.value("SELECT last_error FROM inturn.key_cursor")
    _psql(database, "CALL inturn.apply()")
    assert_once_and_in_turn(database)


def test_a_failure_among_several_keys_changes_nothing_and_asks_for_one_key_at_a_time(
    database: Database,
) -> None:
    """Not a savepoint a key: more than 64 in a transaction slow down every session."""
    open_shop(database, target="sql")
    append_keys(database, 5)
    append(database, "bad", "fail")
    batch = "SELECT keys, commands, failures, redo FROM inturn.apply_batch('shop', '-infinity', %s, 'test')"
    assert database.execute(batch, [6]) == [(6, 0, 0, True)]
    assert count_applied(database) == 0
    assert database.value("SELECT count(*) FROM inturn.turn") == 0
    done = [database.execute(batch, [1])[0] for _ in range(6)]
    assert sorted(done) == [(1, 0, 1, False)] + 5 * [(1, 1, 0, False)]
    assert count_applied(database) == 5
