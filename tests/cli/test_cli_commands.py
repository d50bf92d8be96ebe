"""The `inturn` executable against a real database: what it prints, and how it fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from datetime import datetime
from functools import partial
from typing import Any

import pytest
from support.asked import INSTALLED
from support.database import Database, set_revision, until
from support.forked import folder_of_inturn
from support.roles import OPERATOR, OWNER, members, with_login
from support.terminal import EVIL, on_terminal

from inturn.cli.database import Database as Named

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "INTURN_", "COLUMNS"))}
# No test here may end up in the embedded database of whoever runs it.
ENVIRONMENT["INTURN_EMBEDDED_DATA"] = "/dev/null/postgres"


def _environment(dsn: str | None, **more: str) -> dict[str, str]:
    return ENVIRONMENT | ({"INTURN_DSN": dsn} if dsn is not None else {}) | more


def inturn(
    dsn: str | None,
    *args: str,
    code: int = 0,
    stdin: str | bytes = b"",
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run it and check its exit code, and that it fails in one line."""
    dsn, *words = with_login(dsn or "", *args)
    run = subprocess.run(
        [folder_of_inturn() / "inturn", *words],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        check=False,
        env=_environment(dsn or None, **environment or {}),
    )
    result = subprocess.CompletedProcess(run.args, run.returncode, run.stdout.decode(), run.stderr.decode())
    assert result.returncode == code, result.stderr
    if code:
        assert re.fullmatch(r"inturn: [^\n]+\n", result.stderr)
    return result


def read(dsn: str, *args: str) -> Any:
    return json.loads(inturn(dsn, *args, "--json").stdout)


@pytest.fixture
def held(witness: Database) -> Database:
    """Topic `orders` with a held key of three applied commands, an idle one, a ready one."""
    witness.execute("UPDATE inturn.topic SET max_attempts = 1")
    for name in ("insert", "update", "update", "fail", "delete"):
        witness.execute("SELECT inturn.append('orders', 'order-42', %s, '{\"amount\": 3}')", [name])
    witness.execute("SELECT inturn.append('orders', %s, 'insert')", [EVIL])
    witness.execute("CALL inturn.apply()")
    witness.execute("SELECT inturn.append('orders', 'order-7', 'insert')")
    return witness


# -- the schema


def test_upgrade_installs_once_and_says_what_it_did(empty_database: Database) -> None:
    assert "installed in database" in inturn(empty_database.dsn, "upgrade").stdout
    assert "already" in inturn(empty_database.dsn, "upgrade").stdout
    assert inturn(empty_database.dsn, "keys").stdout == ""


def test_the_printed_script_installs_what_upgrade_installs(empty_database: Database) -> None:
    script = inturn(None, "upgrade", "--sql").stdout
    psql = ("-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", empty_database.dsn)
    empty_database.server.run("psql", *psql, input=script)
    assert "already" in inturn(empty_database.dsn, "upgrade").stdout
    assert inturn(empty_database.dsn, "upgrade", "--sql").stdout.startswith("-- schema inturn is at")
    inturn(empty_database.dsn, "topic", "create", "orders")
    assert inturn(empty_database.dsn, "append", "orders", "k", "insert").stdout == "1\n"


def test_another_schema_is_chosen_by_option_or_environment(empty_database: Database) -> None:
    inturn(empty_database.dsn, "--schema", "queue", "upgrade")
    empty_database.execute(members("queue"))
    inturn(empty_database.dsn, "topic", "create", "orders", "--schema", "queue")
    inturn(empty_database.dsn, "append", "orders", "k", "insert", environment={"INTURN_SCHEMA": "queue"})
    assert empty_database.value("SELECT count(*) FROM queue.command_log") == 1
    inturn(empty_database.dsn, "keys", code=5)


def test_downgrade_refuses_while_commands_are_pending(held: Database) -> None:
    assert "--force" in inturn(held.dsn, "downgrade", code=1).stderr
    held.execute("DROP FUNCTION app.apply_order")
    assert "removed" in inturn(held.dsn, "downgrade", "--force").stdout
    inturn(held.dsn, "downgrade", code=5)


def test_downgrade_to_a_revision_that_never_was_is_one_line(database: Database) -> None:
    assert "nosuch" in inturn(database.dsn, "downgrade", "--to", "nosuch", code=1).stderr


# -- topics and appending


def test_a_topic_is_created_once(database: Database) -> None:
    create = ("topic", "create", "orders", "--max-attempts", "2", "--backoff-base", "90 s")
    assert inturn(database.dsn, *create).stdout == "topic orders created\n"
    assert inturn(database.dsn, *create).stdout == "topic orders exists already\n"
    assert "inturn topic list" in inturn(database.dsn, "topic", "create", "orders", code=1).stderr
    (topic,) = read(database.dsn, "topic", "list")
    assert topic["max_attempts"] == 2
    assert topic["backoff_base_seconds"] == 90
    assert "90s to 5m" in inturn(database.dsn, "topic", "list").stdout


@pytest.mark.parametrize("none", ["0", "0s", "0 days", "00:00"])
def test_no_limit_may_be_written_in_any_way_in_which_nought_can_be(database: Database, none: str) -> None:
    settings = ("--timeout", "--gap-timeout", "--retain", "--retain-idempotency", "--forget-idle-after")
    create = ("topic", "create", "orders", "--max-pending", "0", *(w for s in settings for w in (s, none)))
    assert inturn(database.dsn, *create).stdout == "topic orders created\n"
    assert inturn(database.dsn, "topic", "create", "orders").stdout == "topic orders exists already\n"


@pytest.mark.parametrize(
    "setting",
    [("--target", "nothing"), ("--target", "sql:no.such"), ("--backoff-base", "0"), ("--max-attempts", "0")],
)
def test_a_setting_out_of_range_is_refused(database: Database, setting: tuple[str, str]) -> None:
    inturn(database.dsn, "topic", "create", "orders", *setting, code=1)


def test_whether_payloads_may_be_strings_that_hold_json_is_set_and_shown(database: Database) -> None:
    shown = ("topic", "show", "orders")
    inturn(database.dsn, "topic", "create", "orders")
    assert re.search(r"^json-strings +no$", inturn(database.dsn, *shown).stdout, re.MULTILINE)
    append = ("append", "orders", "k", "insert", json.dumps("[]"))
    assert "json_strings" in inturn(database.dsn, *append, code=1).stderr
    changed = inturn(database.dsn, "topic", "set", "orders", "--json-strings", "yes").stdout
    assert changed == "topic orders: json_strings no -> yes\n"
    assert inturn(database.dsn, *append).stdout == "1\n"
    create = ("topic", "create", "orders", "--json-strings")
    assert inturn(database.dsn, *create, "yes").stdout == "topic orders exists already\n"
    inturn(database.dsn, *create, "no", code=1)
    assert re.search(r"^json-strings +yes$", inturn(database.dsn, *shown).stdout, re.MULTILINE)
    assert read(database.dsn, *shown)["json_strings"] is True


@pytest.mark.parametrize("setting", ["--max-attempts", "--max-in-flight", "--max-ahead"])
def test_a_setting_that_no_column_holds_is_named(database: Database, setting: str) -> None:
    number = "9223372036854775808" if setting == "--max-ahead" else "2147483648"
    error = inturn(database.dsn, "topic", "create", "orders", setting, number, code=2).stderr
    assert setting in error
    assert "out of range" in error


def test_append_prints_the_seq_and_keeps_the_payload_as_written(witness: Database) -> None:
    append = ("append", "orders", "order-42", "insert")
    assert inturn(witness.dsn, *append, '{"amount": 19.90}').stdout == "1\n"
    again = (*append, "-", "--idempotency-key", "once")
    assert inturn(witness.dsn, *again, stdin='{"name": "Grüße"}').stdout == "2\n"
    assert inturn(witness.dsn, *again, stdin='{"name": "Grüße"}').stdout == "2\n"
    assert read(witness.dsn, *append) == {"topic": "orders", "key": "order-42", "seq": 3}
    assert witness.execute("SELECT payload::text FROM inturn.command_log ORDER BY seq") == [
        ('{"amount": 19.90}',),
        ('{"name": "Grüße"}',),
        ("{}",),
    ]


@pytest.mark.parametrize("payload", ["{amount: 3}", '{"a": "\\u0000"}', '{"a": "\\ud800"}', "", b"\xff"])
def test_a_payload_that_cannot_be_stored_is_refused(witness: Database, payload: str | bytes) -> None:
    inturn(witness.dsn, "append", "orders", "k", "insert", "-", stdin=payload, code=1)
    assert witness.value("SELECT count(*) FROM inturn.command_log") == 0


def test_an_unknown_topic_or_bad_key_is_refused(witness: Database) -> None:
    assert "inturn topic create" in inturn(witness.dsn, "append", "nosuch", "k", "n", code=1).stderr
    inturn(witness.dsn, "append", "orders", "", "n", code=1)
    inturn(witness.dsn, "append", "orders", "k" * 513, "n", code=1)
    inturn(witness.dsn, "keys", "--topic", "nosuch", code=1)
    inturn(witness.dsn, "show", "k", "--topic", "nosuch", code=1)


def test_a_topic_whose_callers_number_and_that_works_outside(database: Database) -> None:
    settings = ("--numbering", "given", "--first-seq", "0", "--max-ahead", "5", "--gap-timeout", "10 min")
    outside = ("--target", "https://b.internal/commands", "--lease", "1 min", "--max-in-flight", "7")
    inturn(database.dsn, "topic", "create", "events", *settings, *outside)
    (topic,) = read(database.dsn, "topic", "list")
    given = ("numbering", "first_seq", "max_ahead", "gap_timeout_seconds", "lease_seconds", "max_in_flight")
    assert [topic[name] for name in given] == ["given", 0, 5, 600, 60, 7]
    assert inturn(database.dsn, "topic", "list").stdout.split()[-1] == "given"
    shown = dict(
        line.split(maxsplit=1)
        for line in inturn(database.dsn, "topic", "show", "events").stdout.splitlines()[4:]
    )
    wanted = {"first-seq": "0", "max-ahead": "5", "gap-timeout": "10m", "lease": "1m", "max-in-flight": "7"}
    assert shown.items() >= wanted.items()
    assert inturn(
        database.dsn, "topic", "set", "events", "--gap-timeout", "0", "--max-ahead", "6"
    ).stdout == ("topic events: max_ahead 5 -> 6, gap_timeout 00:10:00 -> never\n")
    assert read(database.dsn, "topic", "list")[0]["gap_timeout_seconds"] is None
    inturn(database.dsn, "topic", "set", "events", "--numbering", "assigned", code=2)

    append = ("append", "events", "k", "insert")
    for seq in ("1", "0", "1"):
        assert inturn(database.dsn, *append, "--seq", seq).stdout == f"{seq}\n"
    for arguments, says in (
        ((*append, "[]", "--seq", "1"), "is there with other content"),
        ((*append, "--seq", "99"), "ahead of the last applied one"),
        (append, "no seq was given"),
        ((*append, "--seq", "3", "--idempotency-key", "x"), "Leave it out"),
    ):
        assert says in inturn(database.dsn, *arguments, code=1).stderr
    inturn(database.dsn, "topic", "create", "orders")
    assert (
        "was given for key" in inturn(database.dsn, "append", "orders", "k", "n", "--seq", "1", code=1).stderr
    )


# -- looking


def test_keys_lists_the_worst_first(held: Database) -> None:
    found = read(held.dsn, "keys")
    assert [(key["key"], key["state"]) for key in found] == [
        ("order-42", "held"),
        ("order-7", "ready"),
        (EVIL, "idle"),
    ]
    assert found[0]["applied_seq"] == 3
    assert found[0]["last_seq"] == 5
    assert found[0]["pending"] == 2
    assert datetime.fromisoformat(found[0]["oldest_pending_at"]).utcoffset() is not None
    assert "refused order-42" in found[0]["last_error"]
    assert [key["key"] for key in read(held.dsn, "keys", "--state", "ready")] == ["order-7"]


def test_keys_says_that_there_are_more(held: Database) -> None:
    result = inturn(held.dsn, "keys", "--limit", "2")
    assert len(result.stdout.splitlines()) == 3
    assert "more than 2" in result.stderr
    assert inturn(held.dsn, "keys", "--limit", "3").stderr == ""


def test_show_tells_a_keys_commands_and_turns(held: Database) -> None:
    (key,) = read(held.dsn, "show", "order-42", "--limit", "2")
    assert (key["topic"], key["state"], key["applied_seq"], key["epoch"]) == ("orders", "held", 3, 1)
    assert [(c["seq"], c["state"]) for c in key["commands"]] == [
        (2, "applied"),
        (3, "applied"),
        (4, "held"),
        (5, "pending"),
    ]
    assert key["commands"][0]["payload"] == {"amount": 3}
    (turn,) = key["timeline"]
    assert (turn["from_seq"], turn["to_seq"], turn["what"]) == (1, 3, "held")
    text = inturn(held.dsn, "show", "order-42").stdout
    assert "after 1 of 1 attempts" in text
    assert "applied  3 of 5, 2 pending" in text


def test_show_finds_the_key_in_every_topic(held: Database) -> None:
    held.execute("SELECT inturn.create_topic('bills')")
    held.execute("SELECT inturn.append('bills', 'order-7', 'insert')")
    assert [key["topic"] for key in read(held.dsn, "show", "order-7")] == ["bills", "orders"]
    assert [key["topic"] for key in read(held.dsn, "show", "order-7", "--topic", "bills")] == ["bills"]
    assert "inturn keys" in inturn(held.dsn, "show", "nosuch", code=1).stderr


def test_an_operator_may_look_and_a_caller_only_append(held: Database) -> None:
    operator, caller = held.operator_dsn, held.caller_dsn
    assert len(read(operator, "keys")) == 3
    assert read(operator, "show", "order-42")
    inturn(operator, "topic", "create", "bills")
    assert inturn(caller, "append", "orders", "order-42", "insert").stdout == "6\n"
    assert "permission denied" in inturn(caller, "keys", code=1).stderr
    assert "inturn_operator" in inturn(caller, "show", "order-42", code=1).stderr


@pytest.mark.parametrize("command", [("keys",), ("show", EVIL), ("show", "order-42"), ("topic", "list")])
def test_tables_hold_at_80_columns_with_control_characters_escaped(
    held: Database, command: tuple[str, ...]
) -> None:
    held.execute("SELECT inturn.create_topic(%s)", ["t" * 128])
    held.execute(
        "SELECT inturn.append(%s, %s, 'insert', %s)", ["t" * 128, EVIL * 20, json.dumps([EVIL] * 99)]
    )
    lines = on_terminal(held.dsn, *command)
    assert all(line.isprintable() for line in lines)
    # What stands above a table is text that the terminal may wrap.
    table = lines[lines.index("") :] if "" in lines else lines
    # Nor a key or a topic that was cut, which stands whole below its row.
    table = [line for line in table if not re.match(r"  ('|\S{70})", line)]
    assert len(table) > 2
    assert max(map(len, table)) <= 80


def test_a_pipe_gets_rows_whole_and_plain(held: Database) -> None:
    printed = inturn(held.dsn, "keys").stdout
    assert printed.count("\n") == 4
    assert r"evil\x1b[2J\u202e\nkey" in printed
    assert "\x1b" not in printed
    assert "refused order-42" in printed
    long = "k" * 512
    held.execute("SELECT inturn.append('orders', %s, 'insert')", [long])
    assert long in inturn(held.dsn, "keys").stdout


# -- which database


def test_dsn_wins_over_the_environment_and_may_follow_the_command(
    database: Database, empty_database: Database
) -> None:
    for args in (("--dsn", database.dsn, "keys"), ("keys", "--dsn", database.dsn)):
        assert inturn(empty_database.dsn, *args).stderr == "inturn: no keys yet\n"


def test_libpqs_own_variables_name_the_database(database: Database) -> None:
    info = database.connect(user=OWNER).info
    variables = {
        "PGHOST": info.host,
        "PGPORT": str(info.port),
        "PGUSER": OPERATOR,
        "PGDATABASE": database.name,
    }
    assert inturn(None, "keys", environment=variables).stderr == "inturn: no keys yet\n"


def test_sessions_are_called_inturn_unless_the_dsn_says_otherwise(witness: Database) -> None:
    called = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND datname = %s"
    for dsn, name in (
        (witness.caller_dsn, "inturn"),
        (witness.caller_dsn + " application_name=night", "night"),
    ):
        session = witness.session()
        session.execute("SELECT inturn.append('orders', 'k', 'insert')")
        process = subprocess.Popen(
            [folder_of_inturn() / "inturn", "append", "orders", "k", "n"],
            stdout=subprocess.DEVNULL,
            env=_environment(dsn),
        )
        until(partial(witness.value, called, [name, witness.name]), f"a session called {name}")
        session.commit()
        assert process.wait(30) == 0


# -- failing


#: Connection strings with a password that lead nowhere, and the exit code.
NOWHERE = [
    ("postgresql://app:s3cret@127.0.0.1:1/x", 4),
    ("host=127.0.0.1 port=1 password=s3cret", 4),
    ("postgresql://app:s3@cret@127.0.0.1:1/x", 2),
    ("postgresql://app:s3/cret@127.0.0.1:1/x", 2),
    ("postgresql://app:s3%zzcret@127.0.0.1:1/x", 2),
    ("postgresql+psycopg://app:s3cret@127.0.0.1:1/x", 2),
    ("host=127.0.0.1 password=a s3cret", 2),
]


def test_an_unreachable_database_is_one_line_and_hides_the_password() -> None:
    for dsn, code in NOWHERE:
        for line in (
            inturn(dsn, "keys", code=code).stderr,
            inturn(None, "upgrade", "--dsn", dsn, code=code).stderr,
            inturn(None, "keys", dsn, code=2).stderr if "://" in dsn else "",
        ):
            assert "s3" not in line
            assert "cret" not in line


def test_a_traceback_or_log_that_shows_the_database_hides_its_password() -> None:
    assert "s3cret" not in repr(Named(dsn="postgresql://app:s3cret@db/x"))


def test_an_empty_dsn_is_not_taken_for_the_embedded_database() -> None:
    inturn(None, "--dsn", "", "keys", code=2)


def test_a_database_that_is_not_there_is_named(database: Database) -> None:
    assert '"nosuch" does not exist' in inturn(database.server.dsn("nosuch"), "keys", code=4).stderr


def test_a_schema_older_or_newer_is_one_line(database: Database) -> None:
    for revision, remedy in (("0000", "inturn upgrade"), ("9999", "pip install")):
        set_revision(database, revision)
        for command in (("keys",), ("show", "k"), ("topic", "list"), ("append", "t", "k", "n")):
            assert remedy in inturn(database.dsn, *command, code=5).stderr, command


def test_a_schema_that_is_not_installed_is_one_line(empty_database: Database) -> None:
    assert "inturn upgrade" in inturn(empty_database.dsn, "keys", code=5).stderr


def test_a_read_only_server_is_one_line(witness: Database) -> None:
    read_only = witness.dsn + " options='-c default_transaction_read_only=on'"
    assert "primary" in inturn(read_only, "append", "orders", "k", "n", code=1).stderr
    inturn(read_only, "keys")


def test_a_connection_lost_in_the_middle_is_one_line(witness: Database) -> None:
    session = witness.session()
    session.execute("SELECT inturn.append('orders', 'k', 'insert')")
    process = subprocess.Popen(
        [folder_of_inturn() / "inturn", "append", "orders", "k", "insert"],
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(witness.caller_dsn),
    )
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE %s = ANY (pg_blocking_pids(pid)) AND datname = current_database()"
    )
    until(lambda: witness.execute(kill, [session.pid]), "the append blocked")
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 4
    assert re.fullmatch(r"inturn: the connection to the database was lost: [^\n]+\n", stderr)


def test_ctrl_c_is_no_traceback(witness: Database) -> None:
    session = witness.session()
    session.execute("SELECT inturn.append('orders', 'k', 'insert')")
    process = subprocess.Popen(
        [INSTALLED, "append", "orders", "k", "insert"],
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(witness.caller_dsn),
    )
    blocked = "SELECT pid FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
    until(lambda: witness.execute(blocked, [session.pid]), "the append blocked")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr.strip()) == (130, "inturn: interrupted")
