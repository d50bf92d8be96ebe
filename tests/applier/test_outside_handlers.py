"""Python handlers outside the database: by lease, without a transaction, and in turn all the same."""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from support.b_server import TOPIC, apply_all, at_work, open_topic, put, put_keys, state, wait_applied
from support.database import Database, until
from support.logins import login
from support.process import inturn_apply, run_apply

from inturn.applier import Applier, Command, Fleet, Hold, NoHandler, OutsideHandler, Retry, Skip

_SECONDS = 20.0


class Log:
    """What outside handlers were called with, in order."""

    def __init__(self) -> None:
        self.calls: list[Command] = []
        self.gate = threading.Event()
        self.gate.set()
        self.applier = Applier()
        self.applier.handler(TOPIC, outside=True)(self.call)

    def call(self, command: Command) -> None:
        self.calls.append(command)
        if command.name == "wait":
            assert self.gate.wait(_SECONDS)

    def seqs(self, key: str) -> list[int]:
        return [command.seq for command in list(self.calls) if command.key == key]


def test_a_handler_gets_the_command_and_no_transaction_waits_for_it(database: Database) -> None:
    open_topic(database, "python")
    log = Log()
    log.gate.clear()
    put(database, "a", "wait", "insert")
    with at_work(database, log.applier):
        until(lambda: log.calls, "the call")
        assert state(database, "a")[0] == "leased"
        until(
            lambda: database.value(
                "SELECT bool_and(xact_start IS NULL) FROM pg_stat_activity"
                " WHERE application_name = 'inturn apply' AND datname = current_database()"
            ),
            "no transaction",
        )
        log.gate.set()
        wait_applied(database)
    first, second = log.calls
    assert first == Command(TOPIC, "a", 1, "wait", {"name": "wait"}, first.created_at, 1, 1)
    assert (second.seq, second.epoch, second.attempt) == (2, 1, 1)
    assert first.created_at.tzinfo is not None


def test_keys_go_side_by_side_and_each_in_turn(database: Database) -> None:
    open_topic(database, "python")
    log = Log()
    together = threading.Barrier(10)

    def meet(command: Command) -> None:
        log.call(command)
        if command.seq == 1:
            together.wait(_SECONDS)

    handlers = Applier()
    handlers.handler(TOPIC, outside=True)(meet)
    put_keys(database, 10, 3)
    assert apply_all(database, handlers).commands == 30
    assert [log.seqs(f"k{n}") for n in range(1, 11)] == [[1, 2, 3]] * 10


def test_a_handler_that_takes_longer_than_the_lease_keeps_its_key(database: Database) -> None:
    open_topic(database, "python", "lease => '5 seconds'")
    log = Log()
    log.gate.clear()
    put(database, "a", "wait", "insert")
    with at_work(database, log.applier), at_work(database, log.applier):
        until(lambda: log.calls, "the call")
        renewed = "SELECT lease_until > claimed_at + interval '7 seconds' FROM inturn.key_cursor"
        until(lambda: database.value(renewed), "the lease renewed")
        log.gate.set()
        wait_applied(database)
    assert log.seqs("a") == [1, 2]


@pytest.mark.parametrize(
    ("error", "after"),
    [
        (Hold("no such account"), ("held", 0, 1)),
        (Retry("later", after=3600), ("retrying", 0, 1)),
        (ValueError("refused"), ("retrying", 0, 1)),
        (SystemExit(3), ("retrying", 0, 1)),
        (Skip("came too late"), ("idle", 1, 0)),
    ],
)
def test_what_a_handler_raises_decides(
    database: Database, error: BaseException, after: tuple[Any, ...]
) -> None:
    open_topic(database, "python", "backoff_base => '1 hour', backoff_cap => '1 hour'")
    handlers = Applier()

    @handlers.handler(TOPIC, outside=True)
    def refuse(command: Command) -> None:
        raise error

    put(database, "a", "one")
    outcome = apply_all(database, handlers)
    skipped = isinstance(error, Skip)
    assert (outcome.commands, outcome.failures, outcome.skipped) == (0, int(not skipped), int(skipped))
    *found, text = state(database, "a")
    assert tuple(found) == after
    if not skipped:
        assert str(error) in str(text)
    if isinstance(error, Retry):
        assert database.value(
            "SELECT ready_at > clock_timestamp() + interval '59 minutes' FROM inturn.key_cursor"
        )
    if isinstance(error, ValueError):
        assert str(text).startswith("ValueError: refused")
        assert "in refuse" in str(text)


def test_a_failed_command_is_tried_again_before_those_behind_it(database: Database) -> None:
    open_topic(database, "python")
    log = Log()

    def third_time(command: Command) -> None:
        log.call(command)
        if command.seq == 2 and command.attempt < 3:
            raise ValueError("not yet")

    handlers = Applier()
    handlers.handler(TOPIC, outside=True)(third_time)
    put(database, "a", "one", "two", "three")
    with at_work(database, handlers):
        wait_applied(database)
    assert [(c.seq, c.attempt) for c in log.calls] == [(1, 1), (2, 1), (2, 2), (2, 3), (3, 1)]


def test_a_handler_that_never_returns_keeps_its_own_key_alone(database: Database) -> None:
    open_topic(database, "python")
    log = Log()
    log.gate.clear()
    put(database, "stuck", "wait")
    with at_work(database, log.applier):
        until(lambda: log.calls, "the call")
        put_keys(database, 30, 2)
        until(
            lambda: database.value("SELECT coalesce(sum(applied_seq), 0) FROM inturn.key_cursor") == 60,
            "the others",
        )
        assert state(database, "stuck")[0] == "leased"
        log.gate.set()
        wait_applied(database)


def test_an_unknown_name_fails_its_command(database: Database) -> None:
    open_topic(database, "python", "max_attempts => 1")
    handlers = Applier()
    handlers.handler(TOPIC, "insert", outside=True)(Log().call)
    put(database, "a", "insert", "vanish")
    outcome = apply_all(database, handlers)
    assert (outcome.commands, outcome.held) == (1, 1)
    assert "no handler for command 'vanish'" in str(state(database, "a")[3])


def test_a_topic_has_handlers_of_one_kind() -> None:
    def inside(connection: psycopg.Connection[Any], command: Command) -> None: ...

    def outside(command: Command) -> None: ...

    handlers = Applier()
    handlers.handler("a", "one")(inside)
    with pytest.raises(ValueError, match="topic 'a' has handlers already of which outside is False"):
        handlers.handler("a", "two", outside=True)(outside)
    handlers.handler("b", "one", outside=True)(outside)
    with pytest.raises(ValueError, match="topic 'b' has handlers already of which outside is True"):
        handlers.handler("b")(inside)
    assert handlers.topics == ["a", "b"]
    command = Command("b", "k", 1, "one", {}, datetime.now(UTC), 1, 1)
    assert handlers.find_outside(command) is outside
    with pytest.raises(NoHandler):
        handlers.find_outside(Command("b", "k", 1, "two", {}, datetime.now(UTC), 1, 1))


def test_a_stop_waits_for_the_handler_and_begins_no_further_command(database: Database) -> None:
    open_topic(database, "python")
    log = Log()
    log.gate.clear()
    put(database, "a", "wait", "insert")
    fleet = Fleet(database.applier_dsn, log.applier)
    fleet.start()
    until(lambda: log.calls, "the call")
    fleet.request_stop()
    log.gate.set()
    assert fleet.wait(_SECONDS)
    outcome = fleet.end(0)
    assert (outcome.commands, outcome.cut, outcome.error) == (1, False, None)
    assert state(database, "a") == ("ready", 1, 0, None)
    apply_all(database, log.applier)
    assert log.seqs("a") == [1, 2]


def test_when_the_grace_is_over_a_handler_at_work_keeps_its_key_until_the_lease_is_over(
    database: Database,
) -> None:
    """Its thread may still be at it: nobody else may begin meanwhile."""
    open_topic(database, "python", "lease => '1 hour'")
    with inturn_apply(database.dsn, "--grace", "0.2", app="support.stuck:applier") as process:
        put(database, "a", "one")
        until(lambda: state(database, "a")[0] == "leased" and "stuck" in process.out, "the call")
        process.send(signal.SIGTERM)
        assert process.exit_code() == 6
    assert state(database, "a") == ("leased", 0, 0, None)


def test_mixed_targets_are_drained_by_one_process(database: Database) -> None:
    open_topic(database, "python")
    database.execute("SELECT inturn.create_topic('inside')")
    database.execute("SELECT inturn.append('inside', 'x', 'one')")
    log = Log()
    seen: list[str] = []

    @log.applier.handler("inside")
    def inside(connection: psycopg.Connection[Any], command: Command) -> None:
        # Work in the transaction may give more work outside: a drain does that too.
        for thread in threading.enumerate():
            if thread.name == "inturn-outside-worker":
                thread.join(1)
        connection.execute("SELECT inturn.append(%s, 'late', 'insert')", [TOPIC])
        seen.append(command.key)

    put(database, "a", "insert")
    # Its handler appends.
    both = login(database, "inturn_applier", "inturn_caller")
    assert apply_all(database, log.applier, dsn=both).commands == 3
    assert (seen, log.seqs("a"), log.seqs("late")) == (["x"], [1], [1])


def test_nothing_to_do_ends_a_drain_at_once(database: Database) -> None:
    open_topic(database, "python")
    code, out, err = run_apply(database.dsn, "--drain", app="support.stuck:applier")
    assert code == 0, err
    assert "applied 0 commands" in out


# `async def` handlers run on the worker's loop.


def test_async_handlers_run_side_by_side_on_the_loop_and_each_key_in_turn(database: Database) -> None:
    open_topic(database, "python")
    handlers = Applier()
    calls: list[tuple[str, int, int]] = []
    standing = 0

    @handlers.handler(TOPIC, outside=True)
    async def meet(command: Command) -> None:
        nonlocal standing
        calls.append((command.key, command.seq, threading.get_ident()))
        standing += 1
        async with asyncio.timeout(_SECONDS):
            while command.seq == 1 and standing < 10:
                await asyncio.sleep(0.001)

    put_keys(database, 10, 3)
    assert apply_all(database, handlers).commands == 30
    assert len({thread for _, _, thread in calls}) == 1, "all on one loop"
    for key in {key for key, _, _ in calls}:
        assert [seq for k, seq, _ in calls if k == key] == [1, 2, 3]


#: What may leave a handler, and what becomes of its key.
RAISED: dict[str, tuple[BaseException, tuple[Any, ...]]] = {
    type(error).__name__: (error, after)
    for error, after in (
        (Hold("no such account"), ("held", 0, 1)),
        (ValueError("refused"), ("retrying", 0, 1)),
        (SystemExit(3), ("retrying", 0, 1)),
        (KeyboardInterrupt(), ("retrying", 0, 1)),
        (asyncio.CancelledError(), ("retrying", 0, 1)),
        (GeneratorExit(), ("retrying", 0, 1)),
        (BaseException("bare"), ("retrying", 0, 1)),
        (Skip("came too late"), ("idle", 1, 0)),
    )
}


@pytest.mark.parametrize("kind", ["async", "thread"])
def test_whatever_leaves_a_handler_fails_its_command_alone(database: Database, kind: str) -> None:
    open_topic(database, "python", "backoff_base => '1 hour', backoff_cap => '1 hour'")
    handlers = Applier()

    async def refuse_async(command: Command) -> None:
        await asyncio.sleep(0)
        refuse(command)

    def refuse(command: Command) -> None:
        if command.key in RAISED:
            raise RAISED[command.key][0]

    handlers.handler(TOPIC, outside=True)(refuse_async if kind == "async" else refuse)
    for key in RAISED:
        put(database, key, "one")
    put_keys(database, 5)
    assert apply_all(database, handlers).commands == 5
    for key, (error, after) in RAISED.items():
        *found, text = state(database, key)
        assert tuple(found) == after, key
        if not isinstance(error, Skip | Hold):
            assert str(text).startswith(key)
            assert "in refuse" in str(text), key


def test_a_decorated_async_handler_is_awaited(database: Database) -> None:
    open_topic(database, "python")
    handlers = Applier()
    done: list[str] = []

    async def send(command: Command) -> None:
        await asyncio.sleep(0)
        done.append(command.key)

    @functools.wraps(send)
    def logged(command: Command) -> Awaitable[None]:
        return send(command)

    class Service:
        async def __call__(self, command: Command) -> None:
            await send(command)

    handlers.handler(TOPIC, "wrapped", outside=True)(logged)
    handlers.handler(TOPIC, "partial", outside=True)(functools.partial(send))
    handlers.handler(TOPIC, "object", outside=True)(Service())
    for name in ("wrapped", "partial", "object"):
        put(database, name, name)
    assert apply_all(database, handlers).commands == 3
    assert sorted(done) == ["object", "partial", "wrapped"]


def _coroutine(command: Command) -> object:
    async def never() -> None: ...

    return never()


async def _returns_coroutine(command: Command) -> object:
    return _coroutine(command)


@pytest.mark.parametrize(
    "handler",
    [_coroutine, _returns_coroutine, lambda command: (seq for seq in [command.seq])],
    ids=["coroutine", "coroutine of an async def", "generator"],
)
def test_a_handler_that_returns_what_did_not_run_fails_its_command(
    database: Database, handler: OutsideHandler
) -> None:
    open_topic(database, "python", "max_attempts => 1")
    handlers = Applier()
    handlers.handler(TOPIC, outside=True)(handler)
    put(database, "a", "one")
    assert apply_all(database, handlers).held == 1
    *found, text = state(database, "a")
    assert found == ["held", 0, 1]
    assert "its body did not run" in str(text)


def test_a_payload_that_python_cannot_read_fails_its_command_alone(database: Database) -> None:
    open_topic(database, "python", "max_attempts => 1")
    log = Log()
    put_keys(database, 3)
    database.execute("SELECT inturn.append(%s, 'deep', 'x', '{\"n\": 1e5000}')", [TOPIC])
    outcome = apply_all(database, log.applier)
    assert (outcome.commands, outcome.held) == (3, 1)
    assert "digits" in str(state(database, "deep")[3])


@pytest.mark.parametrize("timeout", ["NULL", "'1 hour'"])
def test_when_the_grace_is_over_an_async_handler_is_cancelled_and_its_key_let_go(
    database: Database, timeout: str
) -> None:
    open_topic(database, "python", f"lease => '1 hour', timeout => {timeout}")
    handlers = Applier()
    ends: list[str] = []
    begun = threading.Event()

    @handlers.handler(TOPIC, outside=True)
    async def hang(command: Command) -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise ValueError("what came of the cancel") from None

    put(database, "a", "one")
    fleet = Fleet(database.applier_dsn, handlers)
    fleet.start()
    assert begun.wait(_SECONDS)
    outcome = fleet.end(0.1)
    assert outcome.cut
    assert ends == ["cancelled"]
    assert state(database, "a") == ("ready", 0, 0, None), "nobody is blamed, and another may have it at once"
