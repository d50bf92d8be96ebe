"""On a standby, what only reads works, and everything else says in one line to name the primary."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from support.own_server import own_database
from support.process import run_inturn
from support.roles import CALLER, as_role
from support.server import Server
from support.standby import standby
from support.terminal import commands_of

from inturn.cli.main import cli
from inturn.outbox import wait

pytestmark = pytest.mark.server

PRIMARY = "Name the primary server: this one, or this session, takes no writes\n"
#: Commands that only read, and a part of what each prints.
READS = (
    ("keys", "next "),
    ("keys --json", '"key": "next"'),
    ("keys --errors", ""),
    ("show next", "state    ready"),
    ("show done", "state    idle"),
    ("verify", "no violation"),
    ("topic list", "sql:app.apply"),
    ("topic show orders", "sql:app.apply"),
    ("wait done", "applied"),
    ("wait arrived", "applied"),
    ("upgrade", "already"),
    ("upgrade --sql", "nothing to do"),
)
#: Commands that write, or read what a standby does not have.
WRITES = (
    *("append orders k insert", "apply", "apply --drain", "prune --older-than 1d", "downgrade --force"),
    *("topic create x", "topic set orders --max-attempts 2", "topic merge orders a b last"),
    *("topic grant orders --caller inturn_caller", "topic revoke orders --caller inturn_caller"),
    *("status", "status --check", "why next", "doctor", "upgrade --receiver-only"),
    *("metrics", "metrics --keys 3", "metrics --format text"),
    *("pause next", "resume next", "retry next", "retry held", "retry --all --topic bad --yes"),
    *("pause --topic orders --reason x", "resume --topic orders --reason x"),
    *("skip next --seq 1 --reason x", "cancel-rest next --reason x"),
    *("cancel-rest --all --topic bad --yes --reason x", "fill-gap gap --seq 1 --reason x"),
    *("replay done 1 --reason x", "amend next 1 --name y --reason x"),
)
#: What connects to no server that it is given.
ELSEWHERE = {"completion", "demo", "embedded start", "embedded status", "embedded stop"}


@pytest.fixture(scope="module")
def dsn(server: Server) -> Iterator[str]:
    """A standby's database: a key that was applied, one that was not, and one numbered on arrival."""
    with own_database(server) as primary:
        primary.execute(
            "CREATE SCHEMA app; CREATE FUNCTION app.apply(command inturn.command) RETURNS void"
            " LANGUAGE sql AS 'SELECT'; SELECT inturn.create_topic('orders', 'sql:app.apply');"
            "SELECT inturn.create_topic('hot', 'sql:app.apply', numbering => 'arrival');"
            "SELECT inturn.create_topic('given', 'sql:app.apply', numbering => 'given');"
            "SELECT inturn.append('orders', 'done', 'insert');"
            "SELECT inturn.append('given', 'gap', 'insert', seq => 2);"
            "SELECT inturn.append('hot', 'arrived', 'insert');"
            "CREATE FUNCTION app.fail(command inturn.command) RETURNS void"
            " LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;"
            "SELECT inturn.create_topic('bad', 'sql:app.fail', max_attempts => 1);"
            "SELECT inturn.append('bad', 'held', 'insert')"
        )
        primary.execute("CALL inturn.apply()")
        primary.execute("SELECT inturn.append('orders', 'next', 'insert')")
        primary.close()
        with standby(primary.server) as copy:
            yield copy.dsn(primary.name)


@pytest.mark.parametrize(("command", "says"), READS)
def test_what_only_reads_works(dsn: str, command: str, says: str) -> None:
    code, printed, said = run_inturn(dsn, *command.split())
    assert code in (0, 1 if command == "keys --errors" else 0), said
    assert "database refused" not in said
    assert says in printed


@pytest.mark.parametrize("command", WRITES)
def test_what_writes_says_what_to_do(dsn: str, command: str) -> None:
    code, printed, said = run_inturn(dsn, *command.split())
    assert (code, printed) == (1, ""), said
    assert said.endswith(PRIMARY)


def test_every_command_is_tried_on_a_standby() -> None:
    tried = [f"{line} " for line in (*(command for command, _ in READS), *WRITES)]
    untried = {name for name in commands_of(cli) if not any(line.startswith(f"{name} ") for line in tried)}
    assert untried == ELSEWHERE


def test_a_wait_in_python_ends_when_the_standby_shows_the_effect(dsn: str) -> None:
    with psycopg.connect(as_role(dsn, CALLER)) as connection:
        assert wait(connection, "orders", "done").applied_seq == 1
