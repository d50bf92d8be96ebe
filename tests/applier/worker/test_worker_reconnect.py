"""A worker survives the loss of its connection, of its server, and of its schema's version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from support.database import Database, set_revision, until
from support.process import inturn_apply, run_apply
from support.server import Server
from support.shop import (
    after_restart,
    append,
    append_keys,
    applied,
    assert_once_and_in_turn,
    at_work,
    open_shop,
    wait_applied,
    write_witness,
)

from inturn.applier import Applier, Command


@pytest.fixture
def own_server(server: Server) -> Iterator[Server]:
    """A server that a test may stop."""
    own = Server(server.version)
    own.start()
    yield own
    own.remove()


def _kill_appliers(database: Database) -> int:
    return len(
        database.execute("""
            SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
            WHERE application_name = 'inturn apply' AND datname = current_database()""")
    )


def test_idle_workers_and_their_listener_connect_again_after_they_were_terminated(
    database: Database,
) -> None:
    open_shop(database)
    with at_work(database, workers=2):
        for number in range(3):
            key = f"k{number}"
            append(database, key, "insert")
            wait_applied(database, key)
            until(lambda: _kill_appliers(database), "somebody to terminate")
        append(database, "last", "insert")
        until(lambda: applied(database, "last"), "the effect after the last loss")
    assert_once_and_in_turn(database)


def test_a_daemon_goes_on_after_its_server_was_restarted(own_server: Server) -> None:
    database = Database(own_server, "shop")
    database.install()
    open_shop(database)
    with inturn_apply(database.dsn) as process:
        append(database, "a", "insert")
        until(lambda: applied(database, "a"), "at work")
        own_server.stop("fast")
        until(lambda: "lost the database" in process.err, "the loss is logged")
        own_server.start()
        append(after_restart(database), "a", "update")
        until(lambda: applied(database, "a") == [1, 2], "the effect")
        assert process.running
    database.drop()


def test_a_drain_gives_up_on_a_server_that_went_away_and_says_so(own_server: Server) -> None:
    database = Database(own_server, "shop")
    database.install()
    open_shop(database, settings="batch_commands => 1")
    for _ in range(6):
        append_keys(database, 500)
    with inturn_apply(database.dsn, "--drain") as process:
        until(lambda: database.value("SELECT count(*) FROM app.witness") > 20, "at work")
        own_server.stop("immediate")
        assert process.exit_code() == 4
        last = process.err.splitlines()[-1]
        assert last.startswith("inturn: ")
        assert "database" in last
        assert "Traceback" not in process.err
        assert process.out.startswith("applied ")
    own_server.start()
    assert run_apply(database.dsn, "--drain")[0] == 0
    assert_once_and_in_turn(after_restart(database))
    database.drop()


def test_a_daemon_whose_schema_was_upgraded_beneath_it_stops_at_its_next_connection(
    database: Database,
) -> None:
    open_shop(database)
    with inturn_apply(database.dsn) as process:
        append(database, "a", "insert")
        until(lambda: applied(database, "a"), "at work")
        set_revision(database, "9999")
        _kill_appliers(database)
        assert process.exit_code() == 5
        assert "newer than" in process.err.splitlines()[-1]


def test_a_connection_that_broke_is_said_to_be_lost_whatever_its_handler_raises(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """It was said to have closed the connection, and the next one was made without a pause."""
    open_shop(database)
    append(database, "a", "insert")
    handlers = Applier()

    @handlers.handler("shop")
    def handle(connection: psycopg.Connection[Any], command: Command) -> None:
        if command.attempt == 1:
            with suppress(psycopg.Error):
                connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            raise ValueError("a fault of its own")
        write_witness(connection, command)

    with at_work(database, handlers, steady=False):
        until(lambda: applied(database, "a"), "its next attempt")
    assert "lost the database" in caplog.text
    assert "closed by a handler" not in caplog.text
