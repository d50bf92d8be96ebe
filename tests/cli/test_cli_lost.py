"""Connections that are lost in the middle of a command: what it says, and that a wait goes on."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from support.database import Database, until
from support.process import InturnProcess

from inturn.cli import wait as waiting
from inturn.cli.database import Database as Named
from inturn.cli.errors import Failure
from inturn.cli.exit_codes import ExitCode
from inturn.outbox.one_wait import OneWait


@pytest.mark.parametrize(
    ("more", "hint"),
    [((), "Look with inturn show before you repeat it"), (("--idempotency-key", "i"), "Repeat it as it is")],
    ids=["not repeatable", "repeatable"],
)
def test_an_append_whose_connection_is_lost_is_not_said_to_have_failed(
    witness: Database, more: tuple[str, ...], hint: str
) -> None:
    other = witness.session()
    other.execute("SELECT inturn.append('orders', 'k', 'insert')")
    waits = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND application_name = 'inturn'"
    )
    with InturnProcess(witness.dsn, "append", "orders", "k", "insert", *more) as process:
        ((pid,),) = until(lambda: witness.execute(waits), "the append that waits")
        witness.administer(f"SELECT pg_terminate_backend({pid})")
        assert process.exit_code() == ExitCode.UNREACHABLE
        assert "whether the command was appended is not known" in process.err
        assert hint in process.err
        assert process.err.count("\n") == 1


def test_a_wait_connects_again_where_a_new_connection_is_lost_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = psycopg.OperationalError("server closed the connection unexpectedly")
    away = Failure("cannot connect", code=ExitCode.UNREACHABLE)
    given: list[Any] = [away, lost, "a connection"]

    def connect(_: Named) -> Any:
        one = given.pop(0)
        if isinstance(one, Exception):
            raise one
        return one

    monkeypatch.setattr(Named, "connect", connect)
    monkeypatch.setattr(waiting, "_RECONNECT_SECONDS", 0)
    for_ever = OneWait("orders", "k", 1, None, None, "inturn")
    connected: Any = waiting._connected_again(Named(), for_ever)
    assert connected == "a connection"
    task = OneWait("orders", "k", 1, 1000, None, "inturn")

    def connect_at_the_end(_: Named) -> Any:
        task.timeout = 0
        raise lost

    monkeypatch.setattr(Named, "connect", connect_at_the_end)
    with pytest.raises(psycopg.OperationalError):
        waiting._connected_again(Named(), task)
