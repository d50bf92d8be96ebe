"""Any arguments for the Python API: done, or refused by an error that is documented; never half."""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import alembic.util
import psycopg
import pytest
from hypothesis import strategies as st
from sqlalchemy import create_engine
from support.database import Database
from support.hostile import (
    HOSTILE,
    Digest,
    attack,
    bigints,
    floats,
    keys,
    shop,
    texts,
    topics,
    unbroken,
)
from support.logins import login
from support.roles import CALLER

import inturn.applier
import inturn.applier.receiver
import inturn.outbox
import inturn.schema
import inturn.schema.install
from inturn.applier import Applier, Fleet, Hold, Outage, Retry, Skip
from inturn.applier.receiver import receive
from inturn.outbox import (
    InturnError,
    NewCommand,
    append,
    append_async,
    append_many,
    append_many_async,
    wait,
    wait_async,
)
from inturn.schema import check_version
from inturn.schema.install import downgrade, upgrade, upgrade_on, upgrade_script

EXAMPLES = 40
#: What no annotation allows, and a service passes on all the same.
WRONG = (5, 2.5, True, b"x", ["x"], {"x": 1}, object(), "a\0b", "a\ud800", timedelta(1))


def _circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


_any = st.one_of(texts, texts, st.sampled_from(WRONG), st.none())
_topics = st.one_of(topics, topics, st.sampled_from(WRONG), st.none())
_keys = st.one_of(keys, keys, st.sampled_from(WRONG), st.none())
_seqs = st.one_of(st.none(), st.none(), bigints, st.sampled_from((2**64, -(2**70), *WRONG)))
_payloads = st.one_of(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), floats, texts, st.sampled_from(HOSTILE)),
        lambda each: st.one_of(st.lists(each, max_size=3), st.dictionaries(texts, each, max_size=3)),
        max_leaves=6,
    ),
    st.builds(_circular),
    st.sampled_from(WRONG),
)
_schemas = st.one_of(st.just("inturn"), st.just("inturn"), st.just("inturn"), texts, st.sampled_from(WRONG))
_commands = st.builds(NewCommand, _keys, _any, _payloads, _any)


def documented(function: Callable[..., Any]) -> set[str]:
    """Return the names of the errors that its docstring, or the one that it refers to, says it raises."""
    text = inspect.getdoc(function) or ""
    raised = text.partition("Raises:\n")[2].partition("\n\n")[0]
    lines = [line.strip() for line in raised.splitlines()]
    names = (line.partition(":")[0] for line in lines if ":" in line)
    found = {name.strip().rpartition(".")[2] for line in names for name in line.split(",")}
    if other := re.search(r"(?:Do what|The same as) `(\w+)`", text):
        scope = sys.modules[function.__module__]
        for part in function.__qualname__.split(".")[:-1]:
            scope = getattr(scope, part)
        found |= documented(getattr(scope, other[1]))
    return found


def is_refusal(error: BaseException, function: Callable[..., Any], *, elsewhere: bool = False) -> bool:
    """Return whether an error is one of ours, or documented; elsewhere: of a schema that is not there."""
    if isinstance(error, InturnError):
        return bool(error.message.strip())
    original = getattr(error, "orig", error)
    if isinstance(original, psycopg.Error):
        # "Anything else the database says": that there is no such schema, where nothing looks before.
        return elsewhere and original.sqlstate in ("3F000", "42P01", "42883")
    return type(error).__name__ in documented(function) & {"ValueError", "TypeError", "CommandError"}


def attempt(
    function: Callable[..., Any], call: Callable[[], Any], digest: Digest, *, elsewhere: bool = False
) -> str:
    """Make a call; return whether it was done or refused. Raises AssertionError for anything else."""
    before = digest.read()
    try:
        call()
    except Exception as error:
        if not is_refusal(error, function, elsewhere=elsewhere):
            raise AssertionError(f"{function.__name__} raised {type(error).__name__}: {error}") from error
        refused = str(error)
    else:
        return "done"
    assert digest.read() == before, f"half done: {function.__name__}: {refused}"
    return "refused"


def _outbox(
    dsn: str,
) -> dict[str, tuple[Callable[..., Any], st.SearchStrategy[tuple[tuple[Any, ...], dict[str, Any]]]]]:
    """Return the callers' functions by name, and the arguments of each, but the connection."""

    def calls(*positions: st.SearchStrategy[Any], **named: st.SearchStrategy[Any]) -> Any:
        return st.tuples(
            st.tuples(*positions), st.fixed_dictionaries({}, optional={**named, "schema": _schemas})
        )

    one = calls(_topics, _keys, _any, _payloads, idempotency_key=_any, seq=_seqs)
    many = calls(_topics, st.lists(_commands, max_size=4))
    # It waits as long as it is told to.
    times = st.sampled_from((0, 0.0, -1, float("nan"), 0.001))
    waits = st.tuples(calls(_topics, _keys, _seqs, idempotency_key=_any), times).map(
        lambda drawn: (drawn[0][0], {**drawn[0][1], "timeout": drawn[1]})
    )
    return {
        "append": (append, one), "append_async": (append_async, one), "append_many": (append_many, many),
        "append_many_async": (append_many_async, many),
        "wait": (wait, waits), "wait_async": (wait_async, waits),
    }  # fmt: skip


@pytest.mark.each_value
@pytest.mark.timeout(600)
@pytest.mark.parametrize("driver", ["psycopg", "sqlalchemy"])
@pytest.mark.parametrize("name", [name for name in inturn.outbox.__all__ if name[0].islower()])
def test_any_call_of_a_caller_is_done_or_refused(witness: Database, name: str, driver: str) -> None:
    database = shop(witness)
    dsn = login(database, "inturn_caller")
    function, arguments = _outbox(dsn)[name]
    digest, outcomes = Digest(database), set()
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))

    def call(positions: tuple[Any, ...], named: dict[str, Any]) -> None:
        if inspect.iscoroutinefunction(function):
            asyncio.run(_on_async(dsn, function, positions, named))
        elif driver == "psycopg":
            with psycopg.connect(dsn, autocommit=name == "wait") as connection:
                function(connection, *positions, **named)
        else:
            with engine.connect() as alchemy:
                function(alchemy, *positions, **named)
                alchemy.commit()

    @attack(EXAMPLES, arguments)
    def _(given: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        elsewhere = given[1].get("schema", "inturn") != "inturn"
        outcomes.add(attempt(function, lambda: call(*given), digest, elsewhere=elsewhere))

    engine.dispose()
    assert outcomes == {"done", "refused"}
    assert unbroken(database) == []


async def _on_async(
    dsn: str, function: Callable[..., Any], positions: tuple[Any, ...], named: dict[str, Any]
) -> None:
    waits = function is wait_async
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=waits) as connection:
        await function(connection, *positions, **named)


def test_any_call_of_the_schema_is_done_or_refused(witness: Database) -> None:
    database = shop(witness)
    digest, names = (
        Digest(database),
        st.one_of(texts, st.sampled_from(("", "public", "pg_x", "a-b", "select", *WRONG))),
    )
    # Of names that may be one there would be an installation each: tests/schema has them.
    names = names.filter(
        lambda name: name == "select" or not (isinstance(name, str) and re.fullmatch("[a-z_]\\w*", name))
    )
    revisions = st.one_of(
        st.sampled_from(("0000", "0001", "9999", "base", "head", "-1", "+1")), texts, st.none()
    )
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database.dsn))

    def on_engine(schema: Any) -> None:
        with engine.begin() as connection:
            upgrade_on(connection, schema=schema)

    @attack(EXAMPLES, names, revisions, st.booleans())
    def _(schema: Any, revision: Any, flag: bool) -> None:
        assert attempt(upgrade, lambda: upgrade(database.dsn, schema=schema), digest) == "refused"
        assert attempt(upgrade_on, lambda: on_engine(schema), digest) == "refused"
        assert (
            attempt(downgrade, lambda: downgrade(database.dsn, schema=schema, revision="base"), digest)
            == "refused"
        )
        attempt(
            upgrade_script,
            lambda: upgrade_script(schema=schema, from_revision=revision, transaction=flag),
            digest,
        )
        attempt(upgrade_script, lambda: upgrade_script(from_revision=revision, transaction=flag), digest)
        if revision != "base":
            attempt(downgrade, lambda: downgrade(database.dsn, revision=revision), digest)
        with psycopg.connect(database.dsn) as connection:
            attempt(check_version, lambda: check_version(connection, schema), digest)

    engine.dispose()
    assert attempt(check_version, lambda: check_version(database.connect(user=CALLER)), digest) == "done"
    assert issubclass(alembic.util.CommandError, Exception)


def test_any_fleet_is_started_or_refused(witness: Database) -> None:
    database = shop(witness)
    dsn = login(database, "inturn_applier")
    digest, outcomes = Digest(database), set()
    numbers = st.sampled_from((1, 2, 50, 2**31 - 1))
    arguments = st.fixed_dictionaries(
        {},
        optional={
            "topics": st.lists(topics, max_size=3),
            "workers": st.sampled_from((1, 2)),
            "max_keys": numbers,
            "schema": _schemas,
            "prune": st.booleans(),
            "prepare": st.booleans(),
        },
    )

    def run(given: dict[str, Any]) -> None:
        fleet = Fleet(dsn, None, drain=True, **given)
        fleet.start()
        assert fleet.wait(60), "it drains"
        outcome = fleet.end(60)
        if outcome.error is not None:
            raise outcome.error

    @attack(EXAMPLES // 2, arguments)
    def _(given: dict[str, Any]) -> None:
        elsewhere = given.get("schema", "inturn") != "inturn"
        outcomes.add(attempt(Fleet, lambda: run(given), digest, elsewhere=elsewhere))

    assert outcomes == {"done", "refused"}
    assert unbroken(database) == []


def test_any_handler_verdict_and_request_is_taken_or_refused(witness: Database) -> None:
    digest = Digest(witness)
    functions = st.sampled_from((lambda *_: None, print, _generates, _awaits, *WRONG))
    headers = st.dictionaries(
        st.one_of(
            st.sampled_from(
                ("inturn-topic", "inturn-seq", "webhook-id", "webhook-timestamp", "webhook-signature")
            ),
            texts,
        ),
        texts,
        max_size=5,
    )
    secrets = st.one_of(
        st.none(), texts, st.lists(texts, max_size=2), st.just("whsec_" + "YWJj" * 10), st.just("whsec_x")
    )
    afters = st.one_of(
        st.none(), floats, st.sampled_from((timedelta(days=-1), timedelta(days=999999), timedelta(1)))
    )

    @attack(EXAMPLES, _topics, _any, st.booleans(), functions)
    def _(topic: Any, name: Any, outside: bool, function: Any) -> None:
        applier: Any = Applier()
        attempt(Applier.handler, lambda: applier.handler(topic, name, outside=outside)(function), digest)
        attempt(
            Applier.batch_handler, lambda: applier.batch_handler(topic, outside=outside)(function), digest
        )

    @attack(EXAMPLES, texts, afters)
    def _(reason: str, after: Any) -> None:
        for verdict in (Retry, Outage):
            attempt(verdict.__init__, lambda verdict=verdict: verdict(reason, after=after), digest)  # type: ignore[misc]
        assert Hold(reason).reason.strip()
        assert Skip(reason).reason.strip()

    @attack(EXAMPLES, headers, st.binary(max_size=20), secrets)
    def _(given: dict[str, str], body: bytes, secret: Any) -> None:
        assert attempt(receive, lambda: receive(given, body, secret=secret), digest) == "refused"


def _generates(*_: Any) -> Any:
    yield 1


async def _awaits(*_: Any) -> None:
    """Do nothing."""


#: What is public and is attacked above, or takes nothing that could be refused.
ATTACKED = {
    "inturn.outbox": {"append", "append_async", "append_many", "append_many_async", "wait", "wait_async",
                      "NewCommand", "Waited"},
    "inturn.applier": {"Applier", "Fleet", "Timeouts", "Hold", "Outage", "Retry", "Skip", "Verdict", "Batch",
                       "Command", "Outcome", "Totals", "Handler", "BatchHandler", "OutsideHandler"},
    "inturn.schema": {"check_version", "DEFAULT_SCHEMA", "HEAD"},
}  # fmt: skip


@pytest.mark.parametrize("module", [inturn.outbox, inturn.applier, inturn.schema])
def test_everything_public_is_attacked(module: Any) -> None:
    errors = {
        name
        for name in module.__all__
        if isinstance(getattr(module, name), type) and issubclass(getattr(module, name), InturnError)
    }
    assert {*module.__all__} - errors == ATTACKED[module.__name__]
