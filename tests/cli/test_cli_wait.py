"""`inturn wait`: what scripts get, by output and exit code."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest
from click.testing import CliRunner
from support.database import Database, until
from support.logins import login
from support.own_server import own_database
from support.process import InturnProcess, run_inturn
from support.roles import OPERATOR, OWNER
from support.server import Server

from inturn.cli.database import Database as Named
from inturn.cli.errors import Failure, explain
from inturn.cli.main import cli
from inturn.cli.wait import _connected_again
from inturn.outbox.one_wait import OneWait

OK, ERROR, USAGE, HELD, UNREACHABLE, TIMED_OUT, INTERRUPTED = 0, 1, 2, 3, 4, 11, 130
ANNOUNCED = "SELECT count(*) FROM inturn.waiter"


@pytest.fixture
def orders(witness: Database) -> Database:
    """Key a is applied up to 1; key x is held at 2 of 3."""
    witness.execute("UPDATE inturn.topic SET max_attempts = 1")
    for key, name in (("a", "insert"), ("x", "insert"), ("x", "fail"), ("x", "delete")):
        witness.execute("SELECT inturn.append('orders', %s, %s)", [key, name])
    witness.execute("CALL inturn.apply()")
    return witness


def test_what_is_applied_is_said(orders: Database) -> None:
    assert run_inturn(orders.dsn, "wait", "a", "1") == (OK, "orders a: applied, up to 1\n", "")
    assert run_inturn(orders.dsn, "wait", "a", "--timeout", "0") == (OK, "orders a: applied, up to 1\n", "")
    code, out, _ = run_inturn(orders.dsn, "wait", "a", "1", "--topic", "orders", "--json")
    assert (code, json.loads(out)) == (
        OK,
        {"topic": "orders", "key": "a", "seq": 1, "outcome": "applied", "applied_seq": 1, "skipped": False},
    )


def test_a_skipped_command_is_said(orders: Database) -> None:
    orders.execute("SELECT inturn.skip('orders', 'x', 2, 'wrong')")
    says = "orders x: command 2 was skipped: it never took effect, up to 2\n"
    assert run_inturn(orders.dsn, "wait", "x", "2") == (OK, says, "")


def test_an_operator_reads_why_a_key_is_held_and_a_caller_does_not(orders: Database) -> None:
    code, out, err = run_inturn(orders.dsn, "wait", "x", "2")
    assert (code, out) == (HELD, "")
    assert err.startswith("inturn: key 'x' of topic 'orders' is not applied up to 2: it is at 1 and held,")
    assert "refused x" in err
    assert err.endswith("Find out more by: inturn why x --topic orders\n")
    orders.execute("UPDATE inturn.key_mark SET last_error = last_error || E'\\nTraceback'")
    assert "Traceback" not in run_inturn(orders.dsn, "wait", "x", "2")[2], "the first line is enough"
    caller = login(orders, "inturn_caller")
    code, out, err = run_inturn(caller, "wait", "x", "2", "--topic", "orders")
    assert (code, out) == (HELD, "")
    assert "refused" not in err
    code, out, err = run_inturn(caller, "wait", "x", "2", "--topic", "orders", "--json")
    found = json.loads(out)
    assert (code, found["outcome"], found["state"], found["error"]) == (HELD, "held", "held", None)
    code, out, err = run_inturn(caller, "wait", "x", "2")
    assert (code, out) == (USAGE, "")
    assert "--topic" in err


def test_the_end_of_the_time_has_a_code_of_its_own(orders: Database) -> None:
    code, out, err = run_inturn(orders.dsn, "wait", "a", "2", "--timeout", "0.1")
    assert (code, out) == (TIMED_OUT, "")
    assert "is not applied up to 2: it is at 1 and idle" in err
    code, out, _ = run_inturn(orders.dsn, "wait", "a", "2", "--timeout", "0", "--json")
    assert (code, json.loads(out)["outcome"]) == (TIMED_OUT, "timed out")


#: What cannot be waited for, the exit code, and a part of what is said.
REFUSED: list[tuple[tuple[str, ...], int, str]] = [
    (("b", "1"), ERROR, "--topic"),
    (("b", "--topic", "orders"), ERROR, "nothing was ever committed"),
    (("a", "1", "--topic", "order"), ERROR, "topic 'order' does not exist"),
    (("a", "-1"), USAGE, ""),
    (("a", "1", "--timeout", "-1"), USAGE, ""),
    (("a", "1", "--timeout", "nan"), USAGE, "not a number"),
    (("a", "1", "--idempotency-key", "k"), USAGE, "not both"),
]


def test_what_cannot_be_waited_for_is_refused(orders: Database) -> None:
    for args, code, says in REFUSED:
        ended, out, err = run_inturn(orders.dsn, "wait", *args)
        assert (ended, out) == (code, ""), args
        assert says in err
        assert err.count("\n") == 1 or code == USAGE, args


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGINT, INTERRUPTED, "inturn: interrupted\n"), (signal.SIGTERM, -signal.SIGTERM, "")],
)
def test_it_can_be_stopped_and_leaves_nothing(
    orders: Database, number: signal.Signals, code: int, says: str
) -> None:
    with InturnProcess(orders.dsn, "wait", "a", "2", "--timeout", "inf") as process:
        until(lambda: orders.value(ANNOUNCED), "the wait")
        process.send(number)
        assert process.exit_code() == code
        assert (process.out, process.err.lstrip("\n")) == ("", says)
    until(
        lambda: (
            not orders.value(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE application_name = 'inturn' AND datname = current_database()"
            )
        ),
        "the end of its session",
    )


def test_a_wait_outlives_a_restart_of_the_server(server: Server) -> None:
    with own_database(server) as database:
        database.execute("SELECT inturn.create_topic('orders')")
        with InturnProcess(
            database.dsn, "wait", "a", "1", "--topic", "orders", "--timeout", "inf"
        ) as process:
            until(lambda: database.value(ANNOUNCED), "the wait")
            database.close()
            database.server.stop("immediate")
            until(lambda: "waiting on" in process.err, "the loss noticed")
            database.server.start()
            until(lambda: database.value(ANNOUNCED), "the wait announced anew")
            database.execute("SELECT inturn.append('orders', 'a', 'insert')")
            database.execute(
                "SELECT inturn.advance('orders', 'a', 1, 1) FROM inturn.claim('{orders}', 1, NULL, 'me')"
            )
            assert process.exit_code() == OK
            assert process.out == "orders a: applied, up to 1\n"


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Named]:
    """A server that takes connections and says nothing."""
    monkeypatch.setattr("inturn.outbox.bounded.ANSWER_SECONDS", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield Named(f"host=127.0.0.1 port={listening.getsockname()[1]} user=x dbname=x")


def test_no_attempt_to_connect_outlasts_the_time(silent: Named) -> None:
    line = ["--dsn", str(silent.dsn), "wait", "a", "1", "--topic", "orders", "--timeout", "0"]
    result = CliRunner().invoke(cli, line, standalone_mode=False)
    assert isinstance(result.exception, Failure)
    assert explain(result.exception) == (
        "cannot connect to the database in the time to wait. Check that it runs, and its address and login",
        UNREACHABLE,
    )
    with pytest.raises(Failure, match="in the time to wait"):  # nor does one once the first was lost
        _connected_again(silent, OneWait("orders", "a", 1, 0.02, None, "inturn"))


def test_no_question_outlasts_the_time(witness: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = witness.connect(user=OWNER, autocommit=False)
    locked.execute("LOCK TABLE inturn.topic")
    connection = witness.connect(user=OPERATOR)
    monkeypatch.setattr("inturn.outbox.bounded.ANSWER_SECONDS", 0.02)
    monkeypatch.setattr("inturn.cli.wait._connection", lambda *_: connection)
    result = CliRunner().invoke(cli, ["wait", "a", "--timeout", "0"], standalone_mode=False)
    assert isinstance(result.exception, psycopg.OperationalError)
    locked.rollback()


def test_what_the_driver_warns_of_is_not_printed_beside_the_line_that_says_what_happened() -> None:
    """Where it is interrupted in the middle of a query, its rollback may fail."""
    code = (
        "import logging; from inturn.cli.main import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: logging.getLogger('psycopg').warning('error ignored in rollback')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout[:7], done.stderr) == ("inturn,", "")
