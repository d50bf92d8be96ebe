"""Batch handlers: what they get, what they answer, and what becomes of a batch that fails."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg
import pytest
from support.database import Database, until
from support.process import run_apply
from support.roles import OWNER
from support.shop import (
    TOPIC,
    append,
    append_keys,
    applied,
    apply_all,
    assert_once_and_in_turn,
    at_work,
    open_shop,
    write_witness,
)

from inturn.applier import Applier, Command, Hold, Outage, Retry, Skip

Connection = psycopg.Connection[Any]
Answer = Callable[[list[Command]], Any]


class Calls(Applier):
    """An application whose batch handler writes each effect and keeps what it was called with.

    say: what it returns, or raises, for the commands of a call.
    """

    def __init__(self, say: Answer = lambda _: None) -> None:
        super().__init__()
        self.seqs: list[list[int]] = []
        self.commands: list[list[Command]] = []

        @self.batch_handler(TOPIC)
        def apply(connection: Connection, commands: list[Command]) -> Any:
            self.commands.append(commands)
            self.seqs.append([command.seq for command in commands])
            answer = say(commands)
            for command in commands[:answer] if type(answer) is int else commands:
                write_witness(connection, command)
            return answer


def _refuse(*names: str) -> Answer:
    def say(commands: list[Command]) -> None:
        for command in commands:
            if command.name in names:
                raise ValueError(f"refused {command.seq}")

    return say


def _cursor(database: Database) -> tuple[Any, ...]:
    return database.execute(
        "SELECT inturn.key_state(c), applied_seq, attempts, last_error FROM inturn.key_cursor c"
        " WHERE key = 'a'"
    )[0]


def test_it_gets_the_commands_of_one_key_in_order_and_in_one_transaction(database: Database) -> None:
    open_shop(database, settings="batch_commands => 4")
    append(database, "a", "insert", "update", "update", "update", "delete")
    append(database, "b", "insert")
    calls = Calls()
    outcome = apply_all(database, calls)
    assert (outcome.commands, outcome.failures) == (6, 0)
    assert sorted(calls.seqs) == [[1], [1, 2, 3, 4], [5]]
    assert all(len({command.key for command in commands}) == 1 for commands in calls.commands)
    first = next(commands for commands in calls.commands if len(commands) == 4)
    assert [(c.topic, c.key, c.name, c.payload, c.attempt) for c in first[:2]] == [
        (TOPIC, "a", "insert", {}, 1),
        (TOPIC, "a", "update", {}, 1),
    ]
    xids = database.execute("SELECT count(DISTINCT xid) FROM app.witness WHERE key = 'a' AND seq < 5")
    assert xids == [(1,)]
    assert_once_and_in_turn(database)


def test_what_it_answers_is_how_far_it_got(database: Database) -> None:
    open_shop(database)
    append(database, "a", *["insert"] * 5)
    calls = Calls(lambda commands: min(2, len(commands)))
    assert apply_all(database, calls).commands == 5
    assert calls.seqs == [[1, 2, 3, 4, 5], [3, 4, 5], [5]]
    turns = "SELECT from_seq, to_seq, outcome FROM inturn.turn WHERE outcome <> 'idle' ORDER BY epoch"
    assert database.execute(turns) == [(1, 2, "applied"), (3, 4, "applied"), (5, 5, "applied")]
    assert_once_and_in_turn(database)


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (0, "returned 0"),
        (-1, "returned -1"),
        (4, "returned 4"),
        (True, "returned True"),
        ("all", "type str"),
        ([], "type list"),
    ],
)
def test_another_answer_fails_and_nothing_took_effect(database: Database, answer: Any, shown: str) -> None:
    open_shop(database, settings="max_attempts => 1")
    append(database, "a", "insert", "insert", "insert")
    assert apply_all(database, Calls(lambda _: answer)).failures == 1
    state, applied_seq, _, error = _cursor(database)
    assert (state, applied_seq) == ("held", 0)
    assert shown in error
    assert "how many of them took effect" in error
    assert applied(database, "a") == []


@pytest.mark.parametrize("place", [1, 2, 64, 99, 100])
def test_the_command_that_cannot_take_effect_is_found_by_few_calls_and_charged_alone(
    database: Database, place: int
) -> None:
    open_shop(database, settings="max_attempts => 2, backoff_base => '10 ms'")
    names = ["insert"] * 100
    names[place - 1] = "bad"
    append(database, "a", *names)
    calls = Calls(_refuse("bad"))
    with at_work(database, calls):
        until(lambda: _cursor(database)[0] == "held", "held")
    state, applied_seq, attempts, error = _cursor(database)
    assert (state, applied_seq, attempts) == ("held", place - 1, 2)
    assert f"refused {place}" in error
    assert applied(database, "a") == list(range(1, place))
    assert len(calls.seqs) <= 2 * 7 + 2
    assert calls.seqs[-1] == [place], "its second attempt is alone"
    failed = database.execute("SELECT to_seq + 1, outcome FROM inturn.turn WHERE error IS NOT NULL")
    assert sorted(failed) == [(place, "held"), (place, "retrying")]


def test_commands_that_fail_only_together_are_applied_and_none_is_charged(database: Database) -> None:
    """As two upserts of one row in one statement: the company is at fault."""

    def say(commands: list[Command]) -> None:
        if len(commands) > 3:
            raise ValueError("more than three together")

    open_shop(database)
    append(database, "a", *["insert"] * 200)
    calls = Calls(say)
    outcome = apply_all(database, calls)
    assert (outcome.commands, outcome.failures) == (200, 0)
    assert database.value("SELECT count(*) FROM inturn.turn WHERE error IS NOT NULL") == 0
    assert_once_and_in_turn(database)


def test_a_turn_makes_no_more_calls_than_leave_the_other_sessions_alone(database: Database) -> None:
    """Each has a savepoint, and beyond 64 of them every session looks them up on disk."""

    def say(commands: list[Command]) -> None:
        if len(commands) > 1:
            raise ValueError("more than one")

    open_shop(database, settings="batch_commands => 1000")
    append(database, "a", *["insert"] * 300)
    calls = Calls(say)
    apply_all(database, calls)
    turns = database.execute("SELECT to_seq - from_seq + 1 FROM inturn.turn WHERE outcome = 'applied'")
    assert max(turns) <= (50,)
    assert_once_and_in_turn(database)


def test_a_batch_that_fails_late_still_moves_its_key_on(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn is over its time when the call fails: it goes on until there is something to record."""
    monkeypatch.setattr("inturn.applier.inside.python_target.LONGEST_TURN_SECONDS", 0.1)
    monkeypatch.setattr("inturn.applier.inside.python.narrowing.SLOW_SECONDS", 0.1)
    open_shop(database, settings="max_attempts => 1")
    append(database, "a", "insert", "insert", "insert", "bad", "insert")
    connection = database.connect(user=OWNER)

    def say(commands: list[Command]) -> None:
        connection.execute("SELECT pg_sleep(0.2)")
        _refuse("bad")(commands)

    with at_work(database, Calls(say)):
        until(lambda: _cursor(database)[0] == "held", "held")
    assert applied(database, "a") == [1, 2, 3]


@pytest.mark.parametrize(
    ("verdict", "expected", "effects"),
    [
        (Skip("not needed"), ("idle", 4, 0), [1, 2, 4]),
        (Hold("look at it"), ("held", 2, 1), [1, 2]),
        (Retry("later", after=3600), ("retrying", 2, 1), [1, 2]),
        (Outage("down", after=3600), ("ready", 2, 0), [1, 2]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_verdict_is_for_the_command_that_asks_for_it_alone(
    database: Database, verdict: Exception, expected: tuple[Any, ...], effects: list[int]
) -> None:
    def say(commands: list[Command]) -> None:
        if any(command.name == "odd" for command in commands):
            raise verdict

    open_shop(database)
    append(database, "a", "insert", "insert", "odd", "insert")
    apply_all(database, Calls(say))
    assert _cursor(database)[:3] == expected
    assert applied(database, "a") == effects


def test_a_payload_that_cannot_be_read_fails_its_command_alone(database: Database) -> None:
    open_shop(database, settings="max_attempts => 1")
    append(database, "a", "insert")
    database.execute("SELECT inturn.append('shop', 'a', 'insert', '{\"n\": 1e5000}')")
    append(database, "a", "insert")
    apply_all(database, Calls())
    assert _cursor(database)[:2] == ("held", 1)
    assert applied(database, "a") == [1]


def test_deferred_constraints_are_checked_after_each_call(database: Database) -> None:
    open_shop(database, settings="max_attempts => 1")
    database.execute("ALTER TABLE app.witness ADD UNIQUE (name) DEFERRABLE INITIALLY DEFERRED")
    append(database, "a", "insert", "update", "insert", "delete")
    apply_all(database, Calls())
    assert _cursor(database)[:2] == ("held", 2)
    assert "witness_name_key" in _cursor(database)[3]
    assert applied(database, "a") == [1, 2]


def test_what_a_batch_changes_in_the_session_does_not_meet_the_next_key(database: Database) -> None:
    open_shop(database)
    append_keys(database, 5)
    found = []
    applier = Applier()

    @applier.batch_handler(TOPIC)
    def apply(connection: Connection, commands: list[Command]) -> None:
        found.append(connection.execute("SHOW search_path").fetchone())
        connection.execute("SET search_path = elsewhere")

    apply_all(database, applier)
    assert found == [('"$user", public',)] * 5


@pytest.mark.parametrize("in_batches", [False, True])
def test_what_fails_and_leaves_a_lock_in_the_session_is_charged_all_the_same(
    database: Database, *, in_batches: bool
) -> None:
    """The connection is given up each time; the next one must not come to the same point for ever."""

    def apply(connection: Connection, command: Command) -> None:
        write_witness(connection, command)
        if command.name == "bad":
            connection.execute("SELECT pg_advisory_lock(7)")
            raise ValueError("refused")

    applier = Applier()
    if in_batches:

        @applier.batch_handler(TOPIC)
        def apply_each(connection: Connection, commands: list[Command]) -> None:
            for command in commands:
                apply(connection, command)
    else:
        applier.handler(TOPIC)(apply)
    open_shop(database, settings="max_attempts => 1")
    append(database, "a", "insert", "insert", "bad", "insert")
    with at_work(database, applier):
        until(lambda: _cursor(database)[0] == "held", "held")
    assert applied(database, "a") == [1, 2]


def _nothing(connection: Connection, commands: list[Command]) -> None: ...


async def _coroutine(connection: Connection, commands: list[Command]) -> None: ...


def _generator(connection: Connection, commands: list[Command]) -> Iterator[None]:
    yield


async def _async_generator(connection: Connection, commands: list[Command]) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (_coroutine, "async def"),
        (_generator, "generator function"),
        (_async_generator, "generator function"),
        (7, "cannot be called"),
    ],
)
def test_what_a_call_would_not_run_is_refused(function: Any, why: str) -> None:
    applier = Applier()
    with pytest.raises(TypeError, match=why):
        applier.batch_handler(TOPIC)(function)
    assert applier.topics == []


def test_there_are_no_batches_outside_the_database() -> None:
    with pytest.raises(TypeError, match="each command is recorded for itself"):
        Applier().batch_handler(TOPIC, outside=True)  # type: ignore[arg-type]


def test_a_topic_has_one_batch_handler_or_handlers_for_single_commands() -> None:
    applier = Applier()
    applier.batch_handler(TOPIC)(_nothing)
    with pytest.raises(ValueError, match="has a batch handler already"):
        applier.batch_handler(TOPIC)(_nothing)
    with pytest.raises(ValueError, match="has a batch handler, which takes all"):
        applier.handler(TOPIC, "insert")(lambda _connection, _command: None)
    applier.handler("other")(lambda _connection, _command: None)
    with pytest.raises(ValueError, match="has handlers for single commands already"):
        applier.batch_handler("other")(_nothing)
    assert applier.topics == ["other", TOPIC]
    assert applier.find_batch(TOPIC) is _nothing
    assert applier.find_batch("other") is None


@pytest.mark.parametrize("options", [("--drain",), ("--drain", "--workers", "3")], ids=" ".join)
def test_a_process_drains_by_batches(database: Database, options: tuple[str, ...]) -> None:
    open_shop(database, target="python in batches")
    append_keys(database, 30)
    append(database, "deep", *["insert"] * 500)
    code, out, errors = run_apply(database.dsn, *options, app="support.shop:batches")
    assert (code, "applied 530 commands" in out + errors) == (0, True)
    assert_once_and_in_turn(database)


def test_what_a_batch_handler_logs_carries_which_commands_it_has(database: Database) -> None:
    open_shop(database, target="python in batches")
    append(database, "a", *["insert"] * 1100, "insert", "log")
    _, _, errors = run_apply(database.dsn, "--drain", app="support.shop:batches")
    (line,) = [line for line in errors.splitlines() if "counting" in line]
    assert "topic=shop key=a" in line
    assert re.search(r" seqs=\d+-1102 ", line)
    assert " seq=" not in line
