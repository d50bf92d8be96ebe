"""One bad key whose command kills its process, beside healthy ones, in every way of applying."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from inturn.applier import Applier, Command
from support import bad_company, bad_outside
from support.b_server import B, Post, say_ok
from support.database import Database, until
from support.process import inturn_apply

#: Ways of applying, each with the name of its handlers here; a service has none.
WAYS = {
    "a handler in Python": "inside",
    "a batch handler": "batches",
    "a handler outside": "plain",
    "a coroutine outside": "coroutine",
    "a post to a service": None,
}

#: Of those, whose handler can keep its interpreter from everything else, so that no lease is renewed.
BUSY = {"a handler outside": "busy_plain", "a coroutine outside": "busy_coroutine"}
#: For longer than a lease.
LEASE, BUSY_SECONDS = "4 seconds", 10

inside, batches, plain, coroutine = Applier(), Applier(), Applier(), Applier()
busy_plain, busy_coroutine = Applier(), Applier()


def _die_of(command: Command) -> None:
    if command.key == "bad":
        os.kill(os.getpid(), signal.SIGKILL)


def _inside(connection: psycopg.Connection[Any], command: Command) -> None:
    connection.execute(
        "INSERT INTO bad.witness (topic, key, seq) VALUES (%s, %s, %s)",
        (command.topic, command.key, command.seq),
    )
    _die_of(command)


def _batches(connection: psycopg.Connection[Any], commands: list[Command]) -> None:
    for command in commands:
        _inside(connection, command)


async def _coroutine(command: Command) -> None:
    await asyncio.sleep(0)
    _die_of(command)


def _occupy(command: Command) -> None:
    """Sleep in C with the interpreter's lock in hand, as a regular expression does that takes for ever."""
    if command.key == "bad":
        ctypes.PyDLL(None).sleep(BUSY_SECONDS)


async def _occupy_the_loop(command: Command) -> None:
    await asyncio.sleep(0)
    _occupy(command)


for _topic in ("bad", "other"):
    inside.handler(_topic)(_inside)
    batches.batch_handler(_topic)(_batches)
    plain.handler(_topic, outside=True)(_die_of)
    coroutine.handler(_topic, outside=True)(_coroutine)
    busy_plain.handler(_topic, outside=True)(_occupy)
    busy_coroutine.handler(_topic, outside=True)(_occupy_the_loop)


@contextmanager
def company(database: Database, way: str) -> Iterator[Callable[..., None]]:
    """Make the topics for a way of applying; give what runs a process until it has died, or all is over."""
    running: list[int] = []
    handlers = WAYS[way]
    app = None if handlers is None else f"support.deaths:{handlers}"

    async def kill(post: Post, writer: asyncio.StreamWriter) -> bool | None:
        if post.key != "bad":
            await say_ok(post, writer)
            return True
        while not running:  # the process may be quicker than who started it
            await asyncio.sleep(0.01)
        os.kill(running[0], signal.SIGKILL)
        return False

    def run(is_over: Callable[[], bool], *args: str) -> None:
        running.clear()
        with inturn_apply(database.dsn, *args, app=app) as process:
            running.append(process.pid)
            until(lambda: not process.running or is_over(), "its death, or the end", 100)

    with B(kill) as b:
        if handlers in {"inside", "batches"}:
            bad_company.prepare(database, bad_company.Fault(""), target="python")
        else:
            target = "python" if handlers else f"http://127.0.0.1:{b.port}/"
            bad_outside.prepare(database, bad_outside.Fault(""), target, lease=LEASE)
        yield run
