"""`why` of a key that an applier or a session has in hand, and of one for which no applier comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import psycopg
import pytest
from psycopg.types.json import Jsonb
from support.database import Database, Session, set_revision, until
from support.own_server import own_database
from support.process import InturnProcess, inturn_apply, run_inturn
from support.race import Turn, append
from support.roles import APPLIER, OWNER
from support.server import Server
from support.shop import append as append_to_shop
from support.shop import at_work, gate_shut, open_shop, wait_at_gate
from support.why_answers import asked, backends, caller_of, explained

from inturn.applier import Applier

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
        assert session["applier"].startswith(f"{session['host']}:{session['pid']}-")
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


def test_a_handler_that_hangs_is_advised_a_timeout_unless_its_topic_has_one(database: Database) -> None:
    open_shop(database)
    append_to_shop(database, "a", "insert")
    handlers, in_hand, release = Applier(), threading.Event(), threading.Event()

    @handlers.handler("shop")
    def hang(_connection: object, _command: object) -> None:
        in_hand.set()
        release.wait(60)

    with at_work(database, handlers):
        try:
            assert in_hand.wait(60)
            answer, out = explained(database, "a", "applying", "shop")
            _, advice = answer["to_do"].splitlines()
            command, _, remark = advice.partition("  # ")
            assert command == "inturn topic set --timeout 30s {topic}"
            assert remark == "so that a command that hangs fails instead"
            assert "inturn topic set --timeout 30s shop" in out
            database.execute("SELECT inturn.set_topic('shop', timeout => '1 hour')")
            assert "--timeout" not in asked(database, "a", "shop")["to_do"]
        finally:
            release.set()


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
    assert backends(answer) == [operator.pid]
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
    caller = caller_of(drained)
    append(caller, "a")
    reader = drained.session()
    reader.execute("SET default_transaction_read_only = on")
    reader.commit()
    for isolation in ("READ COMMITTED", "REPEATABLE READ"):
        reader.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        assert reader.execute("SELECT cause FROM inturn.why('orders', 'a')") == [("appending",)]
        assert reader.execute("SELECT cause FROM inturn.why('orders', 'b')") == [("no_such_key",)]
        reader.commit()


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
    assert "topic orders: its target has not answered for 1h; the key tried last was order-7: " in status
    assert "process 4711 on b1 has abandoned 2 handlers that did not return" in status
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
    next_command = "SELECT e.cause FROM inturn.command_log l, inturn._explain_locked('orders', 'a', l) e"
    assert drained.execute(next_command) == [], "let go since it was looked for"
    stranger = drained.session()
    stranger.execute("SELECT FROM inturn.ticket FOR UPDATE")
    assert drained.execute(next_command) == [("row_locked",)] * 2
