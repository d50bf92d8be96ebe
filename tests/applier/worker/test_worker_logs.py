"""What a worker logs: one line an event, for machines as JSON, and never a payload or a password."""

from __future__ import annotations

import json
import signal
from typing import Any

from psycopg.conninfo import make_conninfo
from support.b_server import open_topic, put
from support.database import Database, until
from support.process import inturn_apply, run_apply
from support.shop import append, append_keys, applied, open_shop

PASSWORD = "s3cret-p4ssword"
PAYLOAD = "payload-that-is-nobodys-business"
KEY = "k\n\x1b[31m é"


def _parsed(lines: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [json.loads(line) for line in lines.splitlines()]
    return found


def _append_failing(database: Database) -> None:
    database.execute(
        "SELECT inturn.append('shop', %s, 'fail', jsonb_build_object('secret', %s::text))",
        [KEY, PAYLOAD],
    )


def test_json_logs_are_one_object_a_line_that_name_the_command(database: Database) -> None:
    open_shop(database, settings="max_attempts => 1")
    _append_failing(database)
    append_keys(database, 10)
    dsn = make_conninfo(database.dsn, password=PASSWORD)
    code, out, err = run_apply(dsn, "--drain", "--log-format", "json")
    assert code == 3
    assert PASSWORD not in out + err
    assert PAYLOAD not in out + err
    (summary,) = _parsed(out)
    assert (summary["commands"], summary["failures"], summary["held"]) == (10, 1, 1)
    records = _parsed(err)
    for record in [*records, summary]:
        assert {"time", "level", "message"} <= record.keys()
    (failed,) = [record for record in records if "command failed" in record["message"]]
    assert (failed["topic"], failed["key"], failed["seq"]) == ("shop", KEY, 1)
    assert (failed["command"], failed["attempt"], failed["level"]) == ("fail", 1, "WARNING")
    assert "ValueError: refused" in failed["message"]


def test_text_logs_are_one_line_an_event_whatever_the_key_holds(database: Database) -> None:
    open_shop(database, settings="max_attempts => 1")
    _append_failing(database)
    code, out, err = run_apply(make_conninfo(database.dsn, password=PASSWORD), "--drain")
    assert code == 3
    assert PASSWORD not in out + err
    assert PAYLOAD not in out + err
    (failed,) = [line for line in err.splitlines() if "command failed" in line]
    for part in ("warning", "topic=shop", r"key=k\n\x1b[31m é", "seq=1", "attempt=1"):
        assert part in failed
    assert "\x1b" not in err
    (summary,) = out.splitlines()
    assert summary.startswith("applied 0 commands in ")


def test_a_lost_database_is_logged_without_its_password(database: Database) -> None:
    open_shop(database)
    dsn = make_conninfo(database.dsn, password=PASSWORD)
    with inturn_apply(dsn, "--log-format", "json") as process:
        append(database, "a", "insert")
        until(lambda: applied(database, "a"), "at work")
        database.execute("""
            SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
            WHERE application_name = 'inturn apply' AND datname = current_database()""")
        until(lambda: "lost the database" in process.err, "the loss is logged")
        process.send(signal.SIGTERM)
        assert process.exit_code() == 0
        assert PASSWORD not in process.out + process.err
        assert any("lost the database" in record["message"] for record in _parsed(process.err))
        (summary,) = _parsed(process.out)
        assert summary["commands"] == 1


def test_what_a_handler_logs_is_seen_and_carries_its_command(database: Database) -> None:
    open_shop(database)
    append(database, "a", "insert", "log")
    _, _, err = run_apply(database.dsn, "--drain")
    assert "info counting topic=shop key=a seq=2 attempt=1\n" in err
    append(database, "b", "log")
    _, _, err = run_apply(database.dsn, "--drain", "--log-level", "warning")
    assert err == ""


def test_what_a_handler_outside_logs_carries_its_command_however_it_is_called(database: Database) -> None:
    open_topic(database, "python")
    names = ("plain", "async", "decorated", "thread", "object")
    for name in names:
        put(database, f"k-{name}", name, name)
    _, _, err = run_apply(database.dsn, "--drain", app="support.talking:applier")
    lines = sorted(line.partition(" ")[2] for line in err.splitlines() if "counting" in line)
    assert lines == sorted(
        f"info counting topic=posts key=k-{name} seq={seq} attempt=1" for name in names for seq in (1, 2)
    )
