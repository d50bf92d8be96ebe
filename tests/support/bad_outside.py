"""One bad key beside healthy ones, outside the database: handlers, a service over HTTP, a lease client."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg

from inturn.applier import Applier, Command
from support.b_server import Answer, Post, answer, say_ok
from support.bad_company import (
    ATTEMPTS,
    CONSTRAINTS,
    HEALTHY,
    NESTED,
    OTHERS,
    SHARED,
    append_company,
    kinds_here,
)
from support.database import Database

#: Refuses whatever inturn writes about the bad key.
_REFUSES = SHARED["nothing can be written of it"].before
_NUMBER = '{"n": 1e5000}'


@dataclass(frozen=True)
class Fault:
    """One way to go wrong outside the database.

    Attributes:
        error: what the key's error says, in part.
        acts: what the handler of the bad key does; returns what it returns.
        says: what the service answers to a post of the bad key.
        works: what a lease client does instead of reporting what it did of the bad key.
        payload: of the bad command.
        before: SQL that is run once the topics are there.
        settings: of the topics, further arguments of create_topic.
        state: what becomes of the key.
    """

    error: str
    acts: Callable[[], Any] | None = None
    says: Answer | None = None
    works: Callable[[psycopg.Connection[Any], Any], None] | None = None
    payload: str = "{}"
    before: str = ""
    settings: str = ""
    state: str = "held"


def _raises(error: type[BaseException], *args: object) -> Callable[[], Any]:
    def act() -> None:
        raise error(*args)

    return act


async def _body() -> None: ...


def _generator() -> Any:
    yield


def _hang() -> None:
    _released.wait(120)


async def _pass_over() -> None:
    """Pass over the first cancel; the second one comes when the loop ends."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(3600)
    await asyncio.sleep(3600)


_released = threading.Event()

#: Kinds that plain functions and coroutines share.
_EVERY_HANDLER = {
    "an exception": Fault("ValueError", _raises(ValueError, "refused")),
    "a number that Python cannot read": Fault("digits", payload=_NUMBER),
    "a payload nested too deep": Fault("RecursionError", payload=NESTED),
    **{
        f"a {error.__name__}": Fault(error.__name__, _raises(error))
        for error in (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit, BaseException)
    },
    "SystemExit": Fault("SystemExit", _raises(SystemExit, 0)),
    "a generator": Fault("did not run", _generator),
    "nothing can be written of it": Fault("nothing can be written of bad", before=_REFUSES, state="put off"),
}
PLAIN = {
    **_EVERY_HANDLER,
    "it does not return": Fault("timeout", _hang, settings=", timeout => '2 s'"),
}
COROUTINE = {
    **_EVERY_HANDLER,
    "a coroutine": Fault("did not run", _body),
    "a cancel of its own task": Fault("CancelledError", lambda: _own_task().cancel()),
    "it heeds no cancel": Fault(
        "timeout", lambda: asyncio.ensure_future(_pass_over()), settings=", timeout => '1 s'"
    ),
    "it does not return": Fault(
        "timeout", lambda: asyncio.get_running_loop().create_future(), settings=", timeout => '2 s'"
    ),
}


def ways_and_kinds(turn: int) -> Iterator[tuple[str, str, bool]]:
    """Go through handlers of both ways and their kinds; say which of them `make test` tries.

    What both ways share it tries in one of them: in the other one for the other turn, of 0 and 1.
    """
    for number, kind in enumerate(kinds_here(_EVERY_HANDLER)):
        for other, way in enumerate(("plain", "coroutine")):
            yield way, kind, (number + other) % 2 == turn
    for way, kinds in (("plain", PLAIN), ("coroutine", COROUTINE)):
        for kind in kinds:
            if kind not in _EVERY_HANDLER:
                yield way, kind, turn == 0 or kind != "it heeds no cancel"


def _own_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _says(*said: bytes) -> Answer:
    async def say(_: Post, writer: asyncio.StreamWriter) -> bool:
        for one in said:
            writer.write(one)
        await writer.drain()
        return False

    return say


async def _silence(_: Post, _writer: asyncio.StreamWriter) -> bool:
    await asyncio.sleep(120)
    return False


SERVICE = {
    "status 500": Fault("500", says=_says(answer(500))),
    "status 400": Fault("400", says=_says(answer(400))),
    "a redirect": Fault("302", says=_says(answer(302, location="http://127.0.0.1:1/"))),
    "the connection closed": Fault("disconnected without sending a response", says=_says()),
    "what is not HTTP": Fault("illegal status line", says=_says(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")),
    "half an answer": Fault("disconnected without", says=_says(b"HTTP/1.1 200 OK\r\ncontent-len")),
    "no answer": Fault("timeout", says=_silence, settings=", timeout => '2 s'"),
    "nothing can be written of it": Fault("nothing can be written of bad", before=_REFUSES, state="put off"),
}


def _reports(session: psycopg.Connection[Any], command: Any) -> None:
    session.execute("SELECT inturn.fail(%s, %s, %s, %s, 'refused')", command[:4])


def _leaves(session: psycopg.Connection[Any], _: Any) -> None:
    session.close()


def _aborts(session: psycopg.Connection[Any], command: Any) -> None:
    with session.transaction():
        session.execute("SELECT inturn.advance(%s, %s, %s, %s)", command[:4])
        session.execute("SELECT 1 / 0")


LEASE_CLIENT = {
    "what it reports": Fault("refused", works=_reports),
    "its session ends": Fault("the lease of", works=_leaves),
    "its transaction is rolled back": Fault("the lease of", works=_aborts),
    "it never reports": Fault("the lease of", works=lambda _session, _command: None),
    "nothing can be written of it": Fault(
        "nothing can be written of bad", works=_reports, before=_REFUSES, state="put off"
    ),
}


def prepare(database: Database, fault: Fault, target: str = "python", *, lease: str = "10 minutes") -> None:
    """Create the topics `bad` and `other`, and append to the bad key and the healthy ones."""
    database.execute(
        CONSTRAINTS
        + """CREATE FUNCTION bad.refuse_turn() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'nothing can be written of %', NEW.key; END $$"""
    )
    for topic in ("bad", "other"):
        database.execute(
            f"SELECT inturn.create_topic('{topic}', %s, max_attempts => {ATTEMPTS}, lease => '{lease}',"
            f" backoff_base => '10 ms', backoff_cap => '10 ms'{fault.settings})",
            [target],
        )
    append_company(database, fault.payload)
    if fault.before:
        database.execute(fault.before)


def is_healed(database: Database) -> bool:
    """Return whether every healthy command is recorded as applied."""
    done: int = database.value(
        "SELECT count(*) FROM inturn.key_cursor WHERE key <> 'bad' AND applied_seq = 1 AND claimed_by IS NULL"
    )
    return done == HEALTHY + OTHERS


@dataclass
class Seen:
    """How often each healthy command was done."""

    calls: Counter[tuple[str, str]]

    def __init__(self) -> None:
        self.calls = Counter()

    def note(self, topic: str, key: str) -> None:
        if key != "bad":
            self.calls[topic, key] += 1

    def assert_once(self) -> None:
        assert len(self.calls) == HEALTHY + OTHERS
        assert set(self.calls.values()) == {1}


def plain(fault: Fault, seen: Seen) -> Applier:
    """Return plain functions outside the database that do what is wrong on the bad key."""

    def apply(command: Command) -> Any:
        seen.note(command.topic, command.key)
        return fault.acts() if command.key == "bad" and fault.acts else None

    return _for_both(apply)


def coroutine(fault: Fault, seen: Seen) -> Applier:
    """Return the same as coroutines: what is wrong is awaited where it can be."""

    async def apply(command: Command) -> Any:
        seen.note(command.topic, command.key)
        if command.key == "bad" and fault.acts:
            done = fault.acts()
            if isinstance(done, asyncio.Future):
                await done
            await asyncio.sleep(0)
            return done
        return None

    return _for_both(apply)


def _for_both(apply: Callable[[Command], Any] | Callable[[Command], Awaitable[Any]]) -> Applier:
    applier = Applier()
    for topic in ("bad", "other"):
        applier.handler(topic, outside=True)(apply)
    return applier


def service(fault: Fault, seen: Seen) -> Answer:
    """Return how a service answers that fails so on the bad key."""

    async def say(post: Post, writer: asyncio.StreamWriter) -> bool | None:
        seen.note(post.headers["inturn-topic"], post.key)
        says: Answer = fault.says if post.key == "bad" and fault.says else say_ok
        return await says(post, writer)

    return say


def work_by_lease(dsn: str, fault: Fault, seen: Seen, over: threading.Event) -> None:
    """Apply by lease until that is over, one connection after the other."""
    while not over.is_set():
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as session:
            try:
                while not over.is_set() and not session.closed:
                    _one_claim(session, fault, seen)
            except psycopg.Error:
                continue  # a client that takes a new connection and goes on


def _one_claim(session: psycopg.Connection[Any], fault: Fault, seen: Seen) -> None:
    claimed = session.execute(
        "SELECT topic, key, epoch, seq FROM inturn.claim(ARRAY['bad', 'other'], 1, NULL, 'a client')"
    ).fetchall()
    for command in claimed:
        if command[1] == "bad" and fault.works:
            fault.works(session, command)
        else:
            seen.note(command[0], command[1])
            session.execute("SELECT inturn.advance(%s, %s, %s, %s)", command)
            session.execute("SELECT inturn.release(%s, %s, %s)", command[:3])
    if not claimed:
        session.execute("SELECT pg_sleep(0.03)")
