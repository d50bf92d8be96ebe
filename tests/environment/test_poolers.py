"""Through PgBouncer: session and transaction mode work, statement mode is refused in one line."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from support import shop
from support.database import Database, until
from support.pooler import Pooler
from support.process import inturn_apply, run_inturn
from support.race import APPEND
from support.roles import APPLIER, CALLER, as_role

from inturn.applier import Applier, Command, Fleet
from inturn.cli import database as cli_database
from inturn.cli.doctor import pooler as find_pooler
from inturn.cli.doctor.finding import Facts, Finding
from inturn.outbox import append, wait
from inturn.schema.errors import StatementPooling

#: More than a driver takes before it prepares a statement, and more than one server session serves.
MANY = 24


@pytest.fixture(params=["session", "transaction"])
def pooled(request: pytest.FixtureRequest, witness: Database) -> Iterator[str]:
    """The database through a pooler of few sessions, which take turns."""
    with Pooler(witness.server, request.param, sessions=4) as pooler:
        yield pooler.dsn(witness.name)


@pytest.fixture
def statement(witness: Database) -> Iterator[str]:
    with Pooler(witness.server, "statement") as pooler:
        yield pooler.dsn(witness.name)


def applied(database: Database) -> dict[str, list[int]]:
    rows = database.execute(
        "SELECT key, array_agg(seq ORDER BY id) FROM app.witness GROUP BY key ORDER BY key"
    )
    return dict(rows)


@pytest.mark.parametrize("more", [(), ("--no-prepare",), ("--workers", "2")], ids=" ".join)
def test_commands_are_applied_in_turn_and_no_session_keeps_anything(
    pooled: str, witness: Database, more: tuple[str, ...]
) -> None:
    for number in range(MANY):
        with psycopg.connect(as_role(pooled, CALLER), prepare_threshold=None) as connection:
            append(connection, "orders", f"k{number % 3}", "insert")
    assert (code := run_inturn(pooled, "apply", "--drain", *more))[0] == 0, code
    assert applied(witness) == {f"k{n}": list(range(1, MANY // 3 + 1)) for n in range(3)}
    for _ in range(8):  # each in turn
        applier = as_role(pooled, APPLIER)
        with psycopg.connect(applier, autocommit=True, prepare_threshold=None) as connection:
            left = connection.execute(
                "SELECT current_setting('search_path'), current_setting('statement_timeout'),"
                " (SELECT count(*) FROM pg_prepared_statements),"
                " (SELECT count(*) FROM pg_listening_channels()),"
                " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
            ).fetchall()
            assert left == [('"$user", public', "0", 0, 0, 0)]


def test_an_applier_that_sleeps_finds_what_comes_later(pooled: str, witness: Database) -> None:
    with inturn_apply(pooled, app=None) as process:
        for number in range(3):
            with psycopg.connect(as_role(pooled, CALLER)) as connection:
                append(connection, "orders", "k", "insert")
            until(lambda n=number: applied(witness) == {"k": list(range(1, n + 2))}, "the effect")  # type: ignore[misc]
        assert process.running


def test_a_caller_waits_for_its_command(pooled: str, witness: Database) -> None:
    caller = as_role(pooled, CALLER)
    with inturn_apply(pooled, app=None), psycopg.connect(caller, prepare_threshold=None) as connection:
        seq = append(connection, "orders", "k", "insert")
        connection.commit()
        assert wait(connection, "orders", "k", seq, timeout=60).applied_seq == 1


def test_every_command_of_an_operator_works(pooled: str, witness: Database) -> None:
    run_inturn(pooled, "append", "orders", "k", "fail")
    run_inturn(pooled, "topic", "set", "orders", "--max-attempts", "1")
    assert run_inturn(pooled, "apply", "--drain", "--quiet")[0] == 3
    for command in (
        *("keys", "keys --errors", "status", "why k", "show k --error", "verify", "topic list"),
        *("amend k 1 --name insert --reason x", "retry k", "pause k", "resume k", "upgrade"),
        *("topic show orders", "prune --older-than 1d"),
    ):
        code, _, said = run_inturn(pooled, *command.split())
        assert (code, said) == (0, ""), command
    code, _, said = run_inturn(pooled, "doctor")
    assert (code, said) == (9, "")
    assert run_inturn(pooled, "apply", "--drain", "--quiet")[0] == 0
    assert applied(witness) == {"k": [1]}


@pytest.mark.parametrize(
    ("mode", "sessions", "says"),
    [
        ("session", 4, "in session mode"),
        ("session", 1, "in a mode that cannot be told"),
        ("transaction", 4, "in transaction mode: LISTEN does not work"),
        ("transaction", 1, "in transaction mode: LISTEN does not work"),
    ],
)
def test_the_doctor_says_in_which_mode_the_pooler_is(
    witness: Database, monkeypatch: pytest.MonkeyPatch, mode: str, sessions: int, says: str
) -> None:
    # In session mode the only session is never free; otherwise one answers at some time.
    monkeypatch.setattr(find_pooler, "SECONDS", 0.05 if (mode, sessions) == ("session", 1) else 60)
    assert [finding.says for finding in _pooler(witness.dsn)] == []
    with Pooler(witness.server, mode, sessions=sessions) as pooler:
        (found,) = _pooler(pooler.dsn(witness.name))
    assert found.says.startswith(f"this connection goes through a pooler {says}")


def _pooler(dsn: str) -> list[Finding]:
    with cli_database.Database(dsn).connect(check=False) as connection:
        return [*find_pooler.pooler(Facts(connection, "inturn", 300.0))]


def test_what_another_client_left_in_a_session_is_not_charged_to_a_command(witness: Database) -> None:
    with Pooler(witness.server, "transaction", sessions=2) as pooler:
        dsn = pooler.dsn(witness.name, user=APPLIER)
        for number in range(6):  # one of the two sessions, and then the other, has another path
            with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
                connection.execute(f"SET search_path = 'left_{number % 2}'")
        for number in range(MANY):
            witness.execute(APPEND, [f"k{number}"])
        assert (code := run_inturn(dsn, "apply", "--drain"))[0] == 0, code
    assert len(applied(witness)) == MANY
    assert witness.value("SELECT count(*) FROM inturn.turn WHERE outcome NOT IN ('applied')") == 0


def test_a_hanging_handler_is_given_up_and_its_command_charged(database: Database) -> None:
    """No number names its session there: its connection is cut instead."""
    database.execute("SELECT inturn.create_topic('bad', 'python', timeout => '1 s', max_attempts => 1)")
    database.execute("SELECT inturn.append('bad', 'k', 'insert')")
    released, applier = threading.Event(), Applier()

    @applier.handler("bad")
    def hang(_connection: psycopg.Connection[Any], _command: Command) -> None:
        released.wait(120)

    held = "SELECT last_error FROM inturn.list_keys('bad', 'held')"
    with Pooler(database.server, "transaction") as pooler:
        database.dsn = pooler.dsn(database.name)
        try:
            with shop.at_work(database, applier):
                (error,) = until(lambda: database.execute(held), "the key is held", patience=90)[0]
        finally:
            released.set()
    assert "timeout" in error


def test_statement_mode_is_refused_in_one_line_and_changes_nothing(statement: str, witness: Database) -> None:
    witness.execute(APPEND, ["k"])
    for command in (
        *("upgrade", "downgrade", "topic list", "topic set orders --max-attempts 2"),
        *("append orders k insert", "apply", "apply --drain", "keys", "status", "why k", "show k", "doctor"),
        *("verify", "pause k", "prune --older-than 1d", "wait k --timeout 0", "upgrade --receiver-only"),
    ):
        code, printed, said = run_inturn(statement, *command.split())
        assert (code, printed) == (1, ""), command
        assert said == (
            "inturn: the pooler before the database is in statement mode, without transactions."
            " Set its pool_mode to transaction or session for this database, or connect to the server\n"
        ), command
    assert witness.execute("SELECT last_seq FROM inturn.list_keys()") == [(1,)]
    assert witness.value("SELECT count(*) FROM inturn.turn") == 0


def test_statement_mode_is_refused_to_a_fleet_and_to_callers(statement: str, witness: Database) -> None:
    with pytest.raises(StatementPooling, match="pool_mode"):
        Fleet(as_role(statement, APPLIER)).start()
    with psycopg.connect(as_role(statement, CALLER)) as connection, pytest.raises(StatementPooling):
        append(connection, "orders", "k", "insert")
    assert witness.execute("SELECT FROM inturn.list_keys()") == []


def test_in_statement_mode_one_statement_of_plain_sql_still_is_one_transaction(
    statement: str, witness: Database
) -> None:
    with psycopg.connect(as_role(statement, CALLER), autocommit=True, prepare_threshold=None) as connection:
        connection.execute(APPEND, ["k"])
        connection.execute(APPEND, ["k"])
    witness.execute("CALL inturn.apply()")
    assert applied(witness) == {"k": [1, 2]}
