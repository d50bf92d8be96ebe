"""A server whose synchronous standby is gone: each COMMIT waits for it, and is whole already."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from support import shop
from support.database import Database, until
from support.own_server import own_database
from support.process import inturn_apply, run_inturn
from support.roles import OWNER
from support.server import Server
from support.why_answers import asked

#: Of the sessions of appliers whose COMMIT waits, the turn's; and others, as an announcement's may.
_TURN = """
    SELECT pid FROM pg_stat_activity a WHERE wait_event = 'SyncRep' AND application_name = 'inturn apply'
    AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.relation = 'app.witness'::regclass)"""
_OTHERS = _TURN.replace("SELECT pid", "SELECT pg_cancel_backend(pid)").replace("EXISTS", "NOT EXISTS")


@pytest.fixture
def left_alone(server: Server) -> Iterator[Database]:
    """A shop on such a server; what the test itself does waits for nobody."""
    with own_database(server) as database:
        shop.open_shop(database)
        database.execute("CREATE TABLE app.probe ()")
        database.execute("SET synchronous_commit = local")
        database.server.administer("ALTER SYSTEM SET synchronous_standby_names = 'gone'")
        _reload(database)
        probe, tried = database.session(user=OWNER, autocommit=True), Future[Any]()
        tried.set_result(None)

        def waits() -> bool:
            nonlocal tried
            if tried.done():
                tried = probe.begin("INSERT INTO app.probe DEFAULT VALUES")
            return bool(
                database.execute(
                    "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'", [probe.pid]
                )
            )

        until(waits, "a COMMIT that waits")
        yield database


def _reload(database: Database) -> None:
    database.server.administer("SELECT pg_reload_conf()")


def _turn_that_waits(database: Database) -> int:
    """Wait for one; return its backend."""

    def look() -> list[tuple[int]]:
        database.execute(_OTHERS)
        return database.execute(_TURN)

    return int(until(look, "a turn whose COMMIT waits")[0][0])


def test_a_turn_whose_commit_waits_is_explained_and_takes_effect_once_whatever_ends_that(
    left_alone: Database,
) -> None:
    """Whoever is cut off there has committed: a WARNING says so, or nothing does."""
    shop.append(left_alone, "k", "insert")
    with inturn_apply(left_alone.dsn):
        waiting = _turn_that_waits(left_alone)
        answer = asked(left_alone, "k", "shop")
        assert answer["cause"] == "applying"
        assert "It waits for a synchronous standby" in answer["says"]
        assert "synchronous_standby_names" in answer["to_do"]
        assert "pg_terminate_backend" not in answer["to_do"]
        code, out, _ = run_inturn(left_alone.dsn, "why", "k")
        assert code == 0
        assert "waits for a synchronous standby" in " ".join(out.split())
        left_alone.execute("SELECT pg_cancel_backend(%s)", [waiting])
        until(lambda: shop.applied(left_alone, "k") == [1], "the cancelled one took effect")
        shop.append(left_alone, "k", "insert")
        left_alone.execute("SELECT pg_terminate_backend(%s)", [_turn_that_waits(left_alone)])
        until(lambda: shop.applied(left_alone, "k") == [1, 2], "the one that was ended took effect")
        shop.append(left_alone, "k", "insert")
        left_alone.server.administer("ALTER SYSTEM RESET synchronous_standby_names")
        _reload(left_alone)
        until(lambda: shop.applied(left_alone, "k") == [1, 2, 3], "it goes on")
    assert left_alone.execute("SELECT attempts FROM inturn.key_mark WHERE attempts > 0") == []
    assert left_alone.execute("SELECT outcome FROM inturn.turn WHERE outcome <> 'applied'") == []
    shop.assert_once_and_in_turn(left_alone)


def test_why_says_of_an_append_whose_commit_waits_that_it_is_no_use_to_end_it(left_alone: Database) -> None:
    caller = left_alone.session(autocommit=True)
    caller.begin("SELECT inturn.append('shop', 'k', 'insert')")
    left_alone.execute("SELECT inturn.create_topic('quiet')")
    left_alone.execute("SELECT inturn.append('quiet', 'k', 'insert')")
    # What it locks for a moment, as nobody else has, is in the log: its own COMMIT would wait too.
    assert run_inturn(left_alone.dsn, "why", "k", "--topic", "quiet")[0] == 0
    answer = until(
        lambda: (
            (found := asked(left_alone, "k", "shop"))["cause"] == "appending"
            and "standby" in found["says"]
            and found
        ),
        "the append's COMMIT waits",
    )
    assert "synchronous_standby_names" in answer["to_do"]
    assert "pg_terminate_backend" not in answer["to_do"]
