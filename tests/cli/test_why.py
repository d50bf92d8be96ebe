"""`why` names each cause when it has really happened, in data and in words, to every operator."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from support.arrivals import arrive, number
from support.database import Database, Session, set_revision, until
from support.logins import connect_as
from support.own_server import own_database
from support.process import InturnProcess, inturn_apply, run_inturn
from support.race import Turn, append
from support.refusal import refusal
from support.roles import APPLIER, OWNER
from support.server import Server
from support.shop import append as append_to_shop
from support.shop import gate_shut, open_shop, wait_at_gate

from inturn.cli.look.why import TITLES
from inturn.cli.terminal.key_text import escaped

Explained = dict[str, Any]

_COLUMNS = ("topic", "key", "cause", "since", "says", "to_do", "details")


def asked(database: Database, key: str, topic: str | None = "orders") -> Explained:
    """Return the one explanation."""
    (row,) = database.execute("SELECT * FROM inturn.why(%s, %s)", [topic, key])
    return dict(zip(_COLUMNS, row, strict=True))


def explained(database: Database, key: str, cause: str, topic: str = "orders") -> tuple[Explained, str]:
    """Ask in every way; return the function's answer, and what the command prints."""
    answer = asked(database, key, topic)
    assert answer["cause"] == cause, answer
    operator = connect_as(database, "inturn_operator")
    seen = (
        operator.cursor(row_factory=dict_row)
        .execute("SELECT * FROM inturn.why(%s, %s)", [topic, key])
        .fetchone()
    )
    user = operator.info.user
    operator.close()
    database.execute(f"DROP ROLE {user}")
    assert seen is not None
    for column in ("cause", "since", "to_do"):
        assert seen[column] == answer[column], column
    assert _backends(seen) == _backends(answer)
    code, out, err = run_inturn(database.dsn, "why", key, "--topic", topic, "--json")
    assert (code, err) == (int(cause == "no_such_key"), "")
    (data,) = json.loads(out)
    assert (data["topic"], data["key"], data["cause"]) == (topic, key, cause)
    code, out, err = run_inturn(database.dsn, "why", key, "--topic", topic, FORCE_COLOR="1", COLUMNS="80")
    assert (code, err) == (int(cause == "no_such_key"), "")
    lines = out.splitlines()
    assert lines[0].startswith(f"{key} of topic {topic}: {TITLES[cause]}")
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 80, out
    assert "{" not in out
    print(out)
    return answer, out


def _backends(answer: Explained) -> list[int]:
    return [session["backend"] for session in answer["details"].get("sessions", [])]


def test_every_cause_has_its_title_and_its_test() -> None:
    source = Path(__file__).read_text("utf-8")
    assert [cause for cause in TITLES if f'"{cause}"' not in source] == []


# No number yet: tests/sql/test_intake.py has the others.


def test_commands_that_have_no_number_yet_wait_for_who_has_the_key_locked(witness: Database) -> None:
    witness.execute("SELECT inturn.create_topic('posts', 'sql:app.apply_order', numbering => 'arrival')")
    witness.execute(
        "SELECT inturn.announce_applier('a', '{posts}', 'host', 1, version_num) FROM inturn.schema_version"
    )
    arrive(witness, "x", "a")
    assert number(witness) == 1
    witness.execute("CALL inturn.apply()")
    operator = witness.session()
    operator.execute("SELECT FROM inturn.key_sequence WHERE key = 'x' FOR UPDATE")
    arrive(witness, "x", "b")
    assert number(witness) == 0
    answer, out = explained(witness, "x", "not_numbered", "posts")
    assert answer["details"]["arrived"] == 1
    assert f"(backend {operator.pid} of" in out


# No such key.


def test_no_such_key_names_those_that_may_be_meant(witness: Database) -> None:
    witness.execute("SELECT inturn.create_topic('mails')")
    witness.execute("SELECT inturn.append('mails', 'order-77', 'send')")
    for key in ("order-42", "order-43", "order-421", "zebra"):
        append(witness, key)

    def near(key: str, topic: str | None = "orders") -> list[str]:
        answer = asked(witness, key, topic)
        assert answer["cause"] == "no_such_key"
        return [f"{found['topic']}/{found['key']}" for found in answer["details"]["near"]]

    answer, out = explained(witness, "ORDER-42", "no_such_key")
    assert answer["details"]["near"][0] == {"topic": "orders", "key": "order-42"}
    assert "$ inturn why --topic orders order-42" in out
    assert near(" order-42\n")[0] == "orders/order-42"
    for slip in ("oredr-42", "order--42", "orrder-42", "ordr-42", "order42", "order-52", "irder-42"):
        assert near(slip)[0] == "orders/order-42", slip
        assert near(slip, None)[0] == "orders/order-42", slip
    assert near("order-422")[0] == "orders/order-42"
    assert near("order-77")[0] == "mails/order-77"
    assert set(near("order-4")) == {"orders/order-42", "orders/order-43", "orders/order-421"}
    assert near("giraffe") == near("") == near("\x01") == []
    assert near("Order-42", None) == ["orders/order-42"]
    assert near("x" * 5000, None) == []
    assert asked(witness, "giraffe", None)["topic"] is None


def test_every_topic_that_has_the_key_is_explained(witness: Database) -> None:
    witness.execute("SELECT inturn.create_topic('mails')")
    witness.execute("SELECT inturn.append('mails', 'a', 'send')")
    append(witness, "a")
    code, out, _ = run_inturn(witness.dsn, "why", "a", "--json")
    assert code == 0
    assert [(each["topic"], each["cause"]) for each in json.loads(out)] == [
        ("mails", "no_applier"),
        ("orders", "no_applier"),
    ]
    code, out, _ = run_inturn(witness.dsn, "why", "a")
    first, second = out.split("\n\n")
    assert first.startswith("a of topic mails: no applier for ")
    assert second.startswith("a of topic orders: no applier for ")
    code, out, _ = run_inturn(witness.dsn, "why", "b")
    assert code == 1
    assert out.startswith("b: no such key\n")


def test_an_unknown_topic_is_refused(database: Database) -> None:
    assert refusal(database, "SELECT * FROM inturn.why('nosuch', 'a')").sqlstate == "IT001"
    code, out, err = run_inturn(database.dsn, "why", "a", "--topic", "nosuch")
    assert (code, out) == (1, "")
    assert "nosuch" in err


def test_what_a_key_holds_is_printed_and_never_taken_for_a_place_to_fill(witness: Database) -> None:
    witness.execute("UPDATE inturn.topic SET backoff_base = '1 hour', backoff_cap = '2 hours'")
    for key in ("{topic} {key}  # rm -rf", "-x'\"\x1b\\ \u202e", "it's"):
        witness.execute("SELECT inturn.append('orders', %s, 'fail')", [key])
        witness.execute("CALL inturn.apply()")
        (each,) = json.loads(run_inturn(witness.dsn, "why", "--topic", "orders", "--json", "--", key)[1])
        assert each["cause"] == "retrying"
        _, retry = each["to_do"]
        # As the shell reads it.
        words = subprocess.run(
            ["/bin/sh", "-c", f"set -- {retry}\nprintf '%s\\n' \"$@\""],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert words[:4] == ["inturn", "retry", "--topic", "orders"]
        assert words[-1] == escaped(key)
        assert run_inturn(witness.dsn, "why", "--json", *words[2:])[0] == 0
        code, out, _ = run_inturn(witness.dsn, "why", *words[2:])
        assert code == 0
        assert "\x1b" not in out
        assert "\u202e" not in out


def test_among_many_keys_a_wrong_one_is_answered_quickly(database: Database) -> None:
    for topic in ("a", "b"):
        database.execute("SELECT inturn.create_topic(%s)", [topic])
        for table, columns, values in (
            ("key_sequence", "", ""),
            ("ticket", ", epoch, applied_seq, ready_at", ", 0, 0, clock_timestamp()"),
            ("command_log", ", seq, name, payload", ", 1, 'insert', '{}'"),
        ):
            database.execute(
                f"INSERT INTO inturn.{table} (topic, key{columns})"
                f" SELECT %s, 'order-' || n{values} FROM generate_series(1, 100000) n",
                [topic],
            )
    for _ in range(2):
        session = database.session()
        session.execute("SET statement_timeout = '5s'")
        for where, key, cause in (
            (None, "Order-77777", "no_such_key"),
            (None, "giraffe", "no_such_key"),
            ("a", "order-77777", "no_applier"),
        ):
            assert session.execute("SELECT cause FROM inturn.why(%s, %s)", [where, key]) == [(cause,)]
        ((read,),) = session.execute(
            "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables"
            " WHERE schemaname = 'inturn' AND relname NOT IN ('topic', 'applier', 'listener')"
        )
        assert read < 1000
        session.rollback()
        database.execute("ANALYZE")


# Callers.


def _caller(database: Database) -> Session:
    return database.session(application_name="web shop")


def test_the_first_append_of_a_key_is_still_open(witness: Database) -> None:
    caller = _caller(witness)
    append(caller, "a")
    answer, out = explained(witness, "a", "appending")
    assert _backends(answer) == [caller.pid]
    assert f"pg_terminate_backend({caller.pid})" in out
    assert "web shop" in out
    assert asked(witness, "a", None)["topic"] == "orders"
    assert asked(witness, "b")["cause"] == "no_such_key"
    # Nothing is left of the question, and nobody was held up by it.
    caller.commit()
    assert witness.execute("SELECT topic, key FROM inturn.key_sequence") == [("orders", "a")]
    assert asked(witness, "a")["cause"] == "no_applier"


def test_one_of_several_callers_is_named_when_no_row_tells_which(witness: Database) -> None:
    callers = [_caller(witness), _caller(witness)]
    for caller, key in zip(callers, "ab", strict=True):
        append(caller, key)
    answer, out = explained(witness, "a", "appending")
    assert sorted(_backends(answer)) == sorted(caller.pid for caller in callers)
    assert "one of 2 sessions" in " ".join(out.split())


@pytest.fixture
def drained(witness: Database) -> Database:
    """Key a with one command, which is applied."""
    append(witness, "a")
    witness.execute("CALL inturn.apply()")
    return witness


def test_the_next_command_is_being_appended_and_callers_queue(drained: Database) -> None:
    first, *others = [_caller(drained) for _ in range(4)]
    append(first, "a")
    answer, out = explained(drained, "a", "appending")
    assert (_backends(answer), answer["details"]["waiting"]) == ([first.pid], 0)
    assert answer["details"]["sessions"][0]["application"] == "web shop"
    assert "inturn.append" in out
    running = []
    for other in others:
        running.append(other.begin("SELECT inturn.append('orders', 'a', 'insert')"))
        other.wait_blocked()
    answer, out = explained(drained, "a", "appending")
    assert (_backends(answer), answer["details"]["waiting"]) == ([first.pid], 3)
    assert "3 more callers wait behind it" in " ".join(out.split())
    first.rollback()
    for other, call in zip(others, running, strict=True):
        call.result()
        other.rollback()
    assert asked(drained, "a")["cause"] == "nothing_pending"


def test_a_caller_whose_savepoint_was_released_is_found(drained: Database) -> None:
    caller = _caller(drained)
    caller.execute("SAVEPOINT one")
    append(caller, "a")
    assert _backends(asked(drained, "a")) == [caller.pid]
    caller.execute("RELEASE one")
    answer, _ = explained(drained, "a", "appending")
    assert _backends(answer) == [caller.pid]


def test_a_caller_on_a_key_that_an_applier_goes_round_in_vain(drained: Database) -> None:
    """The second command is applied, while a third's transaction is open: the key stays ready."""
    append(drained, "a")
    caller = _caller(drained)
    append(caller, "a")
    drained.execute("CALL inturn.apply(max_seconds => 0.2)")
    answer, _ = explained(drained, "a", "appending")
    assert _backends(answer) == [caller.pid]


def test_nothing_is_pending(drained: Database) -> None:
    answer, out = explained(drained, "a", "nothing_pending")
    assert answer["details"]["applied_seq"] == 1
    assert answer["since"] == drained.value("SELECT finished_at FROM inturn.turn")
    assert "$ inturn show --topic orders a" in out


# In somebody's hands.


@contextmanager
def hung(database: Database, key: str = "h") -> Iterator[tuple[Session, InturnProcess]]:
    """An `inturn apply` whose SQL target waits for a row that a session, the night shift, has locked."""
    database.execute("INSERT INTO app.gate VALUES (%s) ON CONFLICT DO NOTHING", [key])
    night = database.session(application_name="night shift")
    night.execute("SELECT FROM app.gate FOR UPDATE")
    database.execute("SELECT inturn.append('orders', %s, 'hang')", [key])
    with inturn_apply(database.dsn, "--topic", "orders", app=None) as process:
        until(
            lambda: database.value(
                "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))", [night.pid]
            ),
            "the target hangs",
        )
        yield night, process
        if not night.connection.closed:
            night.rollback()


def test_an_applier_is_at_work_and_its_query_waits(witness: Database) -> None:
    with hung(witness) as (night, _):
        answer, out = explained(witness, "h", "applying")
        (session,) = answer["details"]["sessions"]
        assert session["kind"] == "applier"
        assert session["applier"].startswith(f"{session['host']}:{session['pid']}:")
        assert session["blocked_by"] == [night.pid]
        assert answer["details"]["seq"] == 1
        assert "night shift" in session["waits_for"]
        assert f"pg_terminate_backend({night.pid})" in out
        assert "Command 1 (hang)" in out
        listed = witness.execute(
            "SELECT alive, doing, topic, key, seq, waits_for LIKE '%night shift%' FROM inturn.list_appliers()"
        )
        assert listed == [(True, "applying", "orders", "h", 1, True)]
        night.rollback()
        until(lambda: asked(witness, "h")["cause"] == "nothing_pending", "applied")


def test_a_python_handler_is_at_work(database: Database) -> None:
    open_shop(database)
    append_to_shop(database, "a", "insert", "before")
    with gate_shut(database) as keeper, inturn_apply(database.dsn):
        wait_at_gate(database)
        answer, _ = explained(database, "a", "applying", "shop")
        (session,) = answer["details"]["sessions"]
        assert (session["kind"], session["blocked_by"]) == ("applier", [keeper.pid])


def test_a_sql_applier_is_at_work(witness: Database) -> None:
    witness.execute("INSERT INTO app.gate VALUES ('h')")
    keeper, applier = witness.session(), witness.session(autocommit=True)
    keeper.execute("SELECT FROM app.gate FOR UPDATE")
    witness.execute("SELECT inturn.append('orders', 'h', 'hang')")
    applier.begin("CALL inturn.apply()")
    applier.wait_blocked()
    answer, _ = explained(witness, "h", "applying")
    assert answer["details"]["sessions"][0]["applier"] == f"sql:{applier.pid}"
    assert "database session" in str(answer["details"])
    append(witness, "k")
    assert asked(witness, "k")["cause"] == "queued"
    keeper.rollback()


def test_an_operators_open_transaction_is_in_the_way(drained: Database) -> None:
    append(drained, "a")
    operator = drained.session(application_name="psql of alice", user=OWNER)
    operator.execute("SELECT inturn.pause('orders', 'a')")
    answer, out = explained(drained, "a", "row_locked")
    (session,) = answer["details"]["sessions"]
    assert (session["backend"], session["kind"]) == (operator.pid, "operator")
    assert "psql of alice" in " ".join(out.split())
    operator.rollback()
    operator.execute("SAVEPOINT one")
    operator.execute("SELECT FROM inturn.ticket FOR UPDATE")
    operator.execute("RELEASE one")
    answer, _ = explained(drained, "a", "row_locked")
    assert _backends(answer) == [operator.pid]
    operator.rollback()
    assert asked(drained, "a")["cause"] == "no_applier"


def test_asking_takes_no_lock_that_stays(drained: Database) -> None:
    append(drained, "a")
    asking, caller, applier = drained.session(), drained.session(), drained.session()
    asking.execute("SELECT * FROM inturn.why('orders', 'a')")
    asking.execute("SELECT * FROM inturn.why('orders', 'new')")
    assert append(caller, "a") == 3
    assert append(caller, "new") == 1
    assert [turn.key for turn in Turn.claim(drained, applier)] == ["a"]


def test_a_read_only_session_is_answered_too(drained: Database) -> None:
    caller = _caller(drained)
    append(caller, "a")
    reader = drained.session()
    reader.execute("SET default_transaction_read_only = on")
    reader.commit()
    for isolation in ("READ COMMITTED", "REPEATABLE READ"):
        reader.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        assert reader.execute("SELECT cause FROM inturn.why('orders', 'a')") == [("appending",)]
        assert reader.execute("SELECT cause FROM inturn.why('orders', 'b')") == [("no_such_key",)]
        reader.commit()


# Standing still.


def test_a_key_is_held(witness: Database) -> None:
    witness.execute("UPDATE inturn.topic SET max_attempts = 1")
    witness.execute("SELECT inturn.append('orders', 'a', 'fail')")
    witness.execute("CALL inturn.apply()")
    answer, out = explained(witness, "a", "held")
    assert answer["since"] == witness.value("SELECT held_at FROM inturn.key_cursor")
    assert (answer["details"]["attempts"], answer["details"]["seq"]) == (1, 1)
    assert "refused a" in answer["details"]["error"]
    assert "Its next command, 1 (fail), failed for good at attempt 1 of 1: refused a" in " ".join(out.split())
    assert "$ inturn retry --topic orders a" in out
    assert "$ inturn skip --topic orders --seq 1 --reason TEXT a" in out


def test_a_key_is_tried_again_later(witness: Database) -> None:
    witness.execute("UPDATE inturn.topic SET backoff_base = '1 hour', backoff_cap = '2 hours'")
    witness.execute("SELECT inturn.append('orders', 'a', 'fail')")
    witness.execute("CALL inturn.apply()")
    answer, out = explained(witness, "a", "retrying")
    assert (answer["details"]["attempts"], answer["details"]["max_attempts"]) == (1, 5)
    assert ", again in " in out.splitlines()[0]
    assert "at attempt 1 of 5: refused a" in " ".join(out.split())
    assert "It is tried again at 2" in " ".join(out.split())
    witness.execute("UPDATE inturn.key_cursor SET ready_at = now()")
    assert "refused a" in explained(witness, "a", "no_applier")[0]["says"]


def test_a_key_is_paused_by_somebody_for_a_reason(drained: Database) -> None:
    drained.execute("SET inturn.os_user = 'alice@desk'")
    drained.execute("SELECT inturn.pause('orders', 'a', 'the customer calls', now() + interval '90 minutes')")
    answer, out = explained(drained, "a", "paused")
    assert "for another 1h" in out.splitlines()[0]
    said = " ".join(out.split())
    assert "alice@desk paused it until 2" in said
    assert ": the customer calls. Nothing is pending on it now." in said
    assert "$ inturn resume --topic orders a" in out
    append(drained, "a")
    drained.execute("SET inturn.acting_as = 'bob'")
    drained.execute("SELECT inturn.pause('orders', 'a')")
    answer, out = explained(drained, "a", "paused")
    assert "bob paused it for good. No reason was given." in " ".join(out.split())
    assert answer["details"]["acting_as"] == "bob"


def test_its_topic_is_paused(drained: Database) -> None:
    append(drained, "a")
    drained.execute("SELECT inturn.pause_topic('orders', 'the shop moves')")
    answer, out = explained(drained, "a", "topic_paused")
    assert answer["since"] == drained.value("SELECT paused_at FROM inturn.topic")
    assert "paused its whole topic for good: the shop moves." in " ".join(out.split())
    assert "$ inturn resume --topic orders\n" in out
    drained.execute("SELECT inturn.resume_topic('orders')")
    assert asked(drained, "a")["cause"] == "no_applier"


def test_its_target_belongs_to_somebody_else_now(drained: Database) -> None:
    append(drained, "a")
    other = f"other_{drained.name}"
    drained.administer(f"CREATE ROLE {other}; ALTER FUNCTION app.apply_order OWNER TO {other}")
    answer, out = explained(drained, "a", "target_refused")
    assert f"belongs to {other} now" in answer["says"]
    assert "$ inturn topic set orders --target sql:app.apply_order" in out
    drained.administer(f"REASSIGN OWNED BY {other} TO {OWNER}; DROP ROLE {other}")
    assert asked(drained, "a")["cause"] == "no_applier"


def test_an_idle_key_with_something_pending_is_called_broken(drained: Database) -> None:
    append(drained, "a")
    drained.execute("UPDATE inturn.key_cursor SET ready_at = NULL")
    assert "$ inturn verify --topic orders --key a" in explained(drained, "a", "broken")[1]


# Nobody comes.


def test_no_applier_has_ever_served_the_topic(witness: Database) -> None:
    append(witness, "a")
    answer, out = explained(witness, "a", "no_applier")
    assert answer["since"] == witness.value("SELECT ready_at FROM inturn.key_cursor")
    said = "target sql:app.apply_order): none has announced itself since the server started at 2"
    assert said in " ".join(out.split())
    assert "$ inturn apply --topic orders\n" in out
    assert "CALL inturn.apply()" in out
    witness.execute("SELECT inturn.create_topic('mails')")
    witness.execute("SELECT inturn.append('mails', 'a', 'send')")
    _, out = explained(witness, "a", "no_applier", "mails")
    assert "$ inturn apply --app MODULE:APPLIER --topic mails\n" in out


def test_the_appliers_were_killed(witness: Database) -> None:
    with inturn_apply(witness.dsn, app=None) as process:
        until(
            lambda: witness.execute("SELECT 1 FROM inturn.list_appliers() WHERE alive AND doing = 'idle'"),
            "an applier idle",
        )
        process.kill()
        append(witness, "a")
        until(lambda: asked(witness, "a")["cause"] == "no_applier", "its session gone")
    answer, out = explained(witness, "a", "no_applier")
    name, seen_at = witness.execute("SELECT applier, seen_at FROM inturn.applier")[0]
    assert answer["details"]["last_applier"] == name
    assert f"the last one, {name} on " in " ".join(out.split())
    assert timedelta(0) < witness.value("SELECT clock_timestamp()") - seen_at < timedelta(minutes=1)


def test_an_applier_that_stopped_answering_is_no_applier(witness: Database) -> None:
    """Its machine hangs, or is gone without a word: its session stays for hours."""
    with inturn_apply(witness.dsn, app=None) as process:
        until(lambda: witness.execute("SELECT 1 FROM inturn.list_appliers() WHERE doing = 'idle'"), "idle")
        until(lambda: _stopped_between_transactions(witness, process), "stopped")
        append(witness, "a")
        assert asked(witness, "a")["cause"] == "queued"
        witness.execute("UPDATE inturn.applier SET seen_at = seen_at - interval '16 seconds'")
        assert asked(witness, "a")["cause"] == "no_applier"


def _stopped_between_transactions(database: Database, process: InturnProcess) -> bool:
    process.send(signal.SIGSTOP)
    # What it had sent before is answered.
    states = "SELECT a.state FROM inturn.applier JOIN pg_stat_activity a ON a.pid = backend_pid"
    until(lambda: database.execute(states) != [("active",)], "answered")
    if database.execute(states) != [("idle",)]:
        process.send(signal.SIGCONT)
        return False
    return True


def test_other_keys_are_before_it(witness: Database) -> None:
    with hung(witness):
        append(witness, "a")
        answer, out = explained(witness, "a", "queued")
        assert answer["details"]["ahead"] == 0, "the one in hand is not before it"
        (applier,) = answer["details"]["appliers"]
        assert (applier["doing"], applier["key"]) == ("applying", "h")
        assert "0 keys are ready for longer. Appliers alive: 1, at work: 1; " in " ".join(out.split())


# The schema does not fit.

_OTHER_REVISION = """
import sys
import inturn.applier.process.chooser, inturn.schema.version
revision = sys.argv.pop(1)
inturn.applier.process.chooser.HEAD = inturn.schema.version.HEAD = revision
from inturn.cli.main import main
main(sys.argv[1:])
"""


def _apply_as(database: Database, revision: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        _OTHER_REVISION,
        revision,
        "--dsn",
        database.applier_dsn,
        "apply",
        "--drain",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("revision", "remedy"), [("0000", "$ pip install --upgrade inturn"), ("9999", "$ inturn upgrade\n")]
)
def test_the_appliers_are_of_another_revision(witness: Database, revision: str, remedy: str) -> None:
    append(witness, "a")
    ended = _apply_as(witness, revision)
    assert ended.returncode == 5, ended
    answer, out = explained(witness, "a", "schema_mismatch")
    assert answer["details"]["applier_revision"] == revision
    assert remedy in out
    with hung(witness):
        assert asked(witness, "a")["cause"] != "schema_mismatch"


def test_the_schema_changes_under_a_running_applier(witness: Database) -> None:
    with inturn_apply(witness.dsn, app=None) as process:
        until(lambda: witness.execute("SELECT 1 FROM inturn.list_appliers() WHERE doing = 'idle'"), "idle")
        set_revision(witness, "9998")
        assert process.exit_code() == 5
        assert "newer than" in process.err
    append(witness, "a")
    assert asked(witness, "a")["cause"] == "schema_mismatch"


def test_a_session_is_known_by_what_it_announces_and_never_guessed(witness: Database) -> None:
    """An applier of HTTP topics has sessions that announce nothing: they work for what it announced."""
    append(witness, "a")
    witness.execute("SELECT inturn.create_topic('calls', 'http://127.0.0.1:9/')")
    with inturn_apply(witness.dsn, "--topic", "calls", app=None):
        until(lambda: witness.execute("SELECT 1 FROM inturn.list_appliers() WHERE alive"), "an applier")
        strangers = (
            "SELECT count(*) FROM pg_stat_activity a WHERE application_name = 'inturn apply'"
            " AND NOT EXISTS (SELECT FROM inturn.applier p WHERE p.backend_pid = a.pid)"
            " AND query NOT LIKE 'LISTEN %' AND backend_start < clock_timestamp() - interval '2 seconds'"
        )
        until(lambda: witness.value(strangers) > 0, "a session that announces nothing")
        answer, out = explained(witness, "a", "no_applier")
    assert answer["details"]["last_applier"] is None
    assert "pip install" not in out


def test_a_target_that_does_not_answer_is_the_cause_while_its_applier_is_there(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('orders', 'http://b.internal/')")
    append(database, "a")
    applier = database.connect(user=APPLIER)
    down = {"orders": {"seconds": 3600, "key": "order-7", "error": "ConnectError: connection refused"}}
    applier.execute(
        "SELECT inturn.announce_applier('node:7', '{orders}', 'b1', 4711, '0001',"
        " down => %s, abandoned => 2)",
        [Jsonb(down)],
    )
    answer, out = explained(database, "a", "target_down")
    words = " ".join(out.split())
    assert "What its commands need does not answer (target http://b.internal/), since 2" in words
    assert "the last one tried was 'order-7': ConnectError: connection refused" in words
    waited = database.value("SELECT clock_timestamp()") - answer["since"]
    assert timedelta(hours=1) <= waited < timedelta(hours=1, minutes=2)
    status = run_inturn(database.dsn, "status")[1]
    assert "topic orders: its target does not answer, for 1h; the key tried last was order-7: " in status
    assert "process 4711 on b1 has left 2 threads behind: handlers that did not return" in status
    applier.close()
    until(lambda: asked(database, "a")["cause"] == "no_applier", "its session gone")


def test_after_a_crash_nobody_is_blamed_for_not_having_come_back(server: Server) -> None:
    """The list of appliers is empty then, and says nothing of the last day."""
    with own_database(server) as database:
        database.execute("SELECT inturn.create_topic('orders')")
        append(database, "a")
        database.execute("SELECT inturn.announce_applier('node:7', '{orders}', 'b1', 4711, '0001')")
        assert asked(database, "a")["cause"] == "queued"
        began = database.value("SELECT clock_timestamp()")
        database.server.stop("immediate")
        database.server.start()
        until(lambda: _restarted(database, began), "the server is back")
        answer = asked(database, "a")
        assert answer["cause"] == "no_applier"
        assert "): none has announced itself since the server started at 2" in answer["says"]
        # One process of the server dies, and the first lives on.
        started = datetime.fromisoformat(answer["details"]["server_started_at"])
        victim = database.session()
        os.kill(victim.pid, signal.SIGKILL)
        until(lambda: _restarted(database, started), "the server has started its processes anew")
        applier = database.connect(user=APPLIER)
        applier.execute("SELECT inturn.announce_applier('node:8', '{orders}', 'b1', 4711, '0001')")
        applier.close()
        until(lambda: asked(database, "a")["cause"] == "no_applier", "its session gone")
        answer = asked(database, "a")
        assert "the last one, node:8 on b1, was seen at 2" in answer["says"]
        assert "since the server started" not in answer["says"]


def _restarted(database: Database, before: datetime) -> bool:
    try:
        return datetime.fromisoformat(asked(database, "a")["details"]["server_started_at"]) > before
    except psycopg.OperationalError:
        return False


def test_a_lock_that_nobody_has_any_more_is_no_prepared_transaction(drained: Database) -> None:
    append(drained, "a")
    next_command = "SELECT e.cause FROM inturn.command_log l, inturn._explain_hands('orders', 'a', l) e"
    assert drained.execute(next_command) == [], "let go since it was looked for"
    stranger = drained.session()
    stranger.execute("SELECT FROM inturn.ticket FOR UPDATE")
    assert drained.execute(next_command) == [("row_locked",)] * 2


# Leases.


@pytest.fixture
def leased(witness: Database) -> Database:
    """Key a with two commands, which `node:7` has by lease for ten minutes."""
    witness.execute("UPDATE inturn.topic SET lease = '10 minutes'")
    append(witness, "a")
    append(witness, "a")
    witness.execute(
        "SELECT * FROM inturn.claim(topics => '{orders}', max_keys => 1, lease => NULL, applier => 'node:7')"
    )
    return witness


def test_an_applier_has_it_by_lease(leased: Database) -> None:
    answer, out = explained(leased, "a", "leased")
    claimed_at, lease_until = leased.execute("SELECT claimed_at, lease_until FROM inturn.key_cursor")[0]
    assert answer["since"] == claimed_at
    details = answer["details"]
    assert (details["applier"], details["seq"], details["attempt"], details["epoch"]) == ("node:7", 1, 1, 1)
    assert details["until"] == leased.value("SELECT to_jsonb(%s::timestamptz)", [lease_until])
    assert re.match(r"a of topic orders: leased for \d+s, for another 9m\n", out)
    assert "node:7 has it by lease until" in out
    assert "is at command 1 (insert), attempt 1 of 5." in " ".join(out.split())
    leased.execute("SELECT inturn.advance('orders', 'a', 1, 1)")
    assert explained(leased, "a", "leased")[0]["details"]["seq"] == 2
    leased.execute("SELECT inturn.advance('orders', 'a', 1, 2)")
    assert "has recorded every command it can apply" in explained(leased, "a", "leased")[0]["says"]
    leased.execute("SELECT inturn.release('orders', 'a', 1)")
    explained(leased, "a", "nothing_pending")


def test_an_applier_that_announced_itself_is_named_with_its_place_and_said_to_be_gone(
    leased: Database,
) -> None:
    announce = "SELECT inturn.announce_applier('node:7', '{orders}', 'b1', 4711, '0001')"
    applier = leased.connect(user=APPLIER)
    applier.execute(announce)
    answer, out = explained(leased, "a", "leased")
    assert (answer["details"]["host"], answer["details"]["alive"]) == ("b1", True)
    assert "node:7 (host b1, pid 4711) has it by lease" in " ".join(out.split())
    listed = "SELECT alive, doing, topic, key, seq, leases, pid FROM inturn.list_appliers()"
    assert leased.execute(listed) == [(True, "applying", "orders", "a", 1, 1, 4711)]
    applier.close()
    until(lambda: leased.execute(listed)[0][:2] == (False, "gone"), "its session gone")
    _, out = explained(leased, "a", "leased")
    assert "That applier is gone: it was last seen at" in " ".join(out.split())


def test_an_applier_that_never_announced_itself_is_known_by_its_leases(leased: Database) -> None:
    listed = leased.execute("SELECT applier, topics, alive, doing, key, leases FROM inturn.list_appliers()")
    assert listed == [("node:7", ["orders"], True, "applying", "a", 1)]
    append(leased, "b")
    answer, _ = explained(leased, "b", "queued")
    assert [each["applier"] for each in answer["details"]["appliers"]] == ["node:7"]


def test_a_lease_that_ran_out_is_said(leased: Database) -> None:
    leased.execute(
        "UPDATE inturn.key_cursor SET lease_until = clock_timestamp(), ready_at = clock_timestamp()"
    )
    answer, _ = explained(leased, "a", "no_applier")
    assert "The lease of node:7 ran out at" in answer["says"]
    leased.execute(
        "SELECT * FROM inturn.claim(topics => '{orders}', max_keys => 1, lease => NULL, applier => 'node:8')"
    )
    answer, _ = explained(leased, "a", "leased")
    assert (answer["details"]["applier"], answer["details"]["attempt"]) == ("node:8", 1)


def test_a_pause_goes_before_the_lease_and_says_that_the_command_in_hand_is_finished(
    leased: Database,
) -> None:
    leased.execute("SELECT inturn.pause('orders', 'a', 'audit')")
    answer, _ = explained(leased, "a", "paused")
    assert ". node:7 has it by lease until " in answer["says"]
    leased.execute("SELECT inturn.resume('orders', 'a')")
    leased.execute("SELECT inturn.pause_topic('orders', 'audit')")
    assert "node:7 has it by lease" in explained(leased, "a", "topic_paused")[0]["says"]


# Numbers that callers give.


@pytest.fixture
def gap(witness: Database) -> Database:
    """Key a of topic `given`: 1 is applied, 2 is missing, 3 and 5 are there."""
    witness.execute(
        "SELECT inturn.create_topic('given', 'sql:app.apply_order', numbering => 'given',"
        " gap_timeout => '1 hour')"
    )
    for seq in (1, 3, 5):
        give(witness, seq)
    witness.execute("CALL inturn.apply()")
    return witness


def give(session: Database | Session, seq: int) -> None:
    session.execute("SELECT inturn.append('given', 'a', 'insert', seq => %s)", [seq])


def test_it_waits_for_a_number_that_nobody_appended(gap: Database) -> None:
    answer, out = explained(gap, "a", "waiting", "given")
    assert answer["since"] == gap.value("SELECT waiting_at FROM inturn.key_cursor")
    details = answer["details"]
    assert [details[name] for name in ("seq", "until_seq", "later", "last_seq")] == [2, 2, 2, 5]
    text = " ".join(out.split())
    assert (
        "It waits for command 2, which nobody has appended. 2 later ones are there, 3 to 5. It is held at"
        in text
    )
    assert "inturn fill-gap --topic given --seq 2 --reason TEXT a" in text
    words = answer["to_do"].replace("TEXT", "lost").replace("{topic}", "given").replace("{key}", "a").split()
    code, out, err = run_inturn(gap.dsn, *words[1 : words.index("#")])
    assert (code, err) == (0, "")
    assert out == "given a: waiting -> ready; missing command 2 is passed over\n"
    gap.execute("CALL inturn.apply()")
    give(gap, 9)
    answer, _ = explained(gap, "a", "waiting", "given")
    assert "It waits for command 4, which" in answer["says"]
    gap.execute("SELECT inturn.fill_gap('given', 'a', 4, 'lost')")
    gap.execute("CALL inturn.apply()")
    assert "It waits for commands 6 to 8, which" in explained(gap, "a", "waiting", "given")[0]["says"]


def test_the_missing_number_is_being_appended(gap: Database) -> None:
    caller = _caller(gap)
    give(caller, 2)
    answer, _ = explained(gap, "a", "appending", "given")
    assert (_backends(answer), answer["details"]["next_seq"]) == ([caller.pid], 2)
    assert "Its next command, 2, is being appended" in answer["says"]
    caller.rollback()
    assert gap.value("SELECT count(*) FROM inturn.command_log") == 3
    give(caller, 4)
    answer, out = explained(gap, "a", "waiting", "given")
    assert _backends(answer) == [caller.pid]
    assert "Callers have to wait for an open transaction of another command" in " ".join(out.split())
    caller.commit()


def test_of_a_key_whose_callers_number_another_number_is_being_appended(gap: Database) -> None:
    for seq in (2, 4):
        give(gap, seq)
    gap.execute("CALL inturn.apply()")
    caller = _caller(gap)
    give(caller, 8)
    answer, _ = explained(gap, "a", "appending", "given")
    assert answer["details"]["next_seq"] is None
    assert answer["says"].startswith("A command of it is being appended")
    caller.rollback()
    explained(gap, "a", "nothing_pending", "given")


def test_a_key_that_waited_too_long_is_held_and_says_so(gap: Database) -> None:
    gap.execute("SELECT inturn.set_topic('given', gap_timeout => '1 ms')")
    gap.execute("UPDATE inturn.key_cursor SET ready_at = clock_timestamp()")
    gap.execute("CALL inturn.apply()")
    answer, out = explained(gap, "a", "held", "given")
    assert answer["since"] == gap.value("SELECT held_at FROM inturn.key_cursor")
    assert (
        "It waited for command 2, which nobody appended, for longer than the topic's gap_timeout"
        in " ".join(out.split())
    )
    assert [line.split()[1] for line in answer["to_do"].splitlines()] == ["retry", "fill-gap"]
    caller = _caller(gap)
    give(caller, 2)
    explained(gap, "a", "appending", "given")


def test_a_pause_goes_before_a_gap_and_says_that_one_is_there(gap: Database) -> None:
    gap.execute("SELECT inturn.pause('given', 'a')")
    answer, _ = explained(gap, "a", "paused", "given")
    assert answer["says"].endswith("Its next command, 2, is missing too")


def test_where_nothing_may_be_written_a_gap_is_explained_too(gap: Database) -> None:
    caller = _caller(gap)
    give(caller, 2)
    reader = gap.connect(options="-c default_transaction_read_only=on")
    rows = reader.execute("SELECT cause, says FROM inturn.why('given', 'a')").fetchall()
    assert [cause for cause, _ in rows] == ["waiting"]
    assert "open transaction" in rows[0][1]
