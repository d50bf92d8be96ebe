"""An upgrade that is not compatible, in the middle of a turn: it ends the applier, and charges no command."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import psycopg
import pytest
from support import b_server
from support.b_server import TOPIC as OUTSIDE
from support.b_server import B, Gate, Post, answer, put, state
from support.database import Database, come_first, until
from support.next_release import NEXT, NextRelease
from support.process import inturn_apply
from support.race import replace_in
from support.shop import (
    Target,
    append,
    apply_all,
    assert_once_and_in_turn,
    at_work,
    count_applied,
    gate_shut,
    open_shop,
    wait_at_gate,
)

from inturn.applier import Applier, Command
from inturn.schema import HEAD
from inturn.schema.errors import SchemaMismatch

#: For processes at work on a busy machine.
PATIENCE = 120.0
pytestmark = pytest.mark.timeout(600)

#: A command that fails is held at once: who was charged is seen.
_SETTINGS = "max_attempts => 1"
_STATE = "SELECT applied_seq, attempts, held_at, lease_until FROM inturn.key_cursor"
_AS_IT_WAS = [(0, 0, None, None)]


def _let_turns_last(database: Database) -> None:
    """Let a turn of a key that is taken alone begin its next command, however long the one before waited."""
    replace_in(database, "_begin_until", (r"least\('1 s'", "least('1 hour'"))


def _apply_the_rest(database: Database, release: NextRelease) -> None:
    """Take the upgrade back, so that today's appliers can show that nothing was lost."""
    assert database.execute(_STATE) == _AS_IT_WAS
    assert count_applied(database) == 0
    release.downgrade(database.dsn, revision=HEAD)
    apply_all(database)
    assert_once_and_in_turn(database)


@pytest.mark.each_value
@pytest.mark.parametrize("drain", [True, False], ids=["drain", "daemon"])
@pytest.mark.parametrize(
    ("target", "alone", "gone"),
    [
        ("python", False, "finish"),
        ("python", True, "_end_alone"),
        ("python", True, "_check_effects"),
        ("python in batches", False, "finish"),
        ("sql", False, "finish"),
        ("sql", True, "_end_alone"),
        ("sql", True, "_check_effects"),
        ("sql", True, "_turn_commands"),
    ],
)
def test_in_the_databases_transactions(
    database: Database,
    tmp_path: Path,
    target: Target,
    alone: bool,
    gone: str,
    drain: bool,
) -> None:
    release = NextRelease(tmp_path, renamed=[gone])
    open_shop(database, target=target, settings=_SETTINGS)
    _let_turns_last(database)
    append(database, "a", "before", "insert")
    with gate_shut(database) as gate, at_work(database, steady=not alone, drain=drain) as fleet:
        wait_at_gate(database)
        release.upgrade(database.dsn)
        gate.rollback()
        assert fleet.wait(PATIENCE)
        outcome = fleet.end(PATIENCE)
    assert isinstance(outcome.error, SchemaMismatch)
    assert f"revision {NEXT}, newer than the {HEAD}" in str(outcome.error)
    assert (outcome.commands, outcome.failures, outcome.skipped) == (0, 0, 0)
    _apply_the_rest(database, release)


def test_a_drain_on_the_command_line_says_so_and_not_what_is_missing(
    database: Database, tmp_path: Path
) -> None:
    release = NextRelease(tmp_path, renamed=["finish", "_end_alone"])
    open_shop(database, settings=_SETTINGS)
    append(database, "a", "before", "insert")
    with gate_shut(database) as gate, inturn_apply(database.dsn, "--drain") as process:
        wait_at_gate(database)
        release.upgrade(database.dsn)
        gate.rollback()
        assert process.exit_code(PATIENCE) == 5
        assert f"revision {NEXT}, newer than the {HEAD}" in process.err
        assert "does not exist" not in process.err
    _apply_the_rest(database, release)


def _python(database: Database, entered: threading.Event, gate: threading.Event) -> Applier:
    handlers = Applier()

    def work(command: Command) -> None:
        entered.set()
        assert gate.wait(PATIENCE)

    handlers.handler(OUTSIDE, outside=True)(work)
    b_server.open_topic(database, "python", _SETTINGS)
    return handlers


@pytest.mark.parametrize("drain", [True, False], ids=["drain", "daemon"])
@pytest.mark.parametrize("gone", [["_record_progress"], ["_record_progress", "_lose_alone"]])
def test_outside_of_them(database: Database, tmp_path: Path, gone: list[str], drain: bool) -> None:
    release = NextRelease(tmp_path, renamed=gone)
    entered, gate = threading.Event(), threading.Event()
    handlers = _python(database, entered, gate)
    put(database, "a", "first", "second")
    try:
        with b_server.at_work(database, handlers, drain=drain) as fleet:
            assert entered.wait(PATIENCE)
            release.upgrade(database.dsn)
            gate.set()
            assert fleet.wait(PATIENCE)
            outcome = fleet.end(PATIENCE)
    finally:
        gate.set()
    assert isinstance(outcome.error, SchemaMismatch)
    assert outcome.failures == 0
    found = state(database, "a")
    assert found[1:] == (0, 0, None)
    # Given back at once; where even that is refused, the lease runs out.
    assert "_lose_alone" in gone or found[0] == "ready"


def test_while_a_service_answers(database: Database, tmp_path: Path) -> None:
    release, gate = NextRelease(tmp_path, renamed=["_record_progress"]), Gate()

    async def say(_: Post, writer: asyncio.StreamWriter) -> None:
        await gate.passed()
        writer.write(answer())

    with B(say) as service:
        b_server.open_topic(database, service.url, _SETTINGS)
        put(database, "a", "first", "second")
        with b_server.at_work(database, drain=True) as fleet:
            until(lambda: service.log, "posted")
            release.upgrade(database.dsn)
            gate.open()
            assert fleet.wait(PATIENCE)
            outcome = fleet.end(PATIENCE)
    assert isinstance(outcome.error, SchemaMismatch)
    assert state(database, "a") == ("ready", 0, 0, None)


@pytest.mark.parametrize(
    ("alone", "gone", "again"),
    [
        (0, "finish", False),
        # Tried again, a key's commands are applied one by one.
        (0, "_check_effects", True),
        (1, "_end_alone", False),
        (1, "_check_effects", False),
        (1, "_turn_commands", False),
    ],
)
def test_in_a_call_of_the_procedure(
    database: Database, tmp_path: Path, alone: int, gone: str, again: bool
) -> None:
    release = NextRelease(tmp_path, renamed=[gone])
    open_shop(database, target="sql", settings="max_attempts => 2" if again else _SETTINGS)
    _let_turns_last(database)
    append(database, "a", "fail" if again else "before", "insert")
    if again:
        database.execute("CALL inturn.apply()")
        database.execute("UPDATE inturn.command_log SET name = 'before' WHERE name = 'fail'")
        come_first(database, "a")
    before = database.execute(_STATE)
    session = database.session(autocommit=True)
    session.execute(f"SET inturn.careful_keys = {alone}")
    with gate_shut(database) as gate:
        call = session.begin("CALL inturn.apply()")
        wait_at_gate(database)
        release.upgrade(database.dsn)
        gate.rollback()
        with pytest.raises(psycopg.errors.UndefinedFunction, match=gone) as refused:
            call.result(PATIENCE)
    if alone:
        assert refused.value.diag.message_hint == (
            "The schema was upgraded meanwhile: call inturn.apply() again."
        )
    assert database.execute(_STATE) == before
    assert count_applied(database) == 0
    release.downgrade(database.dsn, revision=HEAD)
    database.execute("CALL inturn.apply()")
    assert_once_and_in_turn(database)
