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
from support import bad_company, bad_outside, standing
from support.b_server import B, Post, say_ok
from support.call_client import call_client
from support.database import Database, until
from support.lease_client import lease_client
from support.process import InturnProcess, inturn_apply
from support.receiving import Process

#: Ways of applying, each with the name of its handlers here, or what it has instead.
WAYS = {
    "a SQL target": "sql",
    "the client of a CALL": "call",
    "a handler in Python": "inside",
    "a batch handler": "batches",
    "a handler outside": "plain",
    "a coroutine outside": "coroutine",
    "a post to a service": "post",
    "a lease client": "lease",
}
#: Which of those apply in the database, and of them who is at a SQL target; which are not an `inturn apply`.
IN_SQL, INSIDE, CLIENTS = {"sql", "call"}, {"sql", "call", "inside", "batches"}, {"call", "lease"}

#: Of those, whose handler can keep its interpreter from everything else: outside, no lease is renewed then.
BUSY_OUTSIDE = {"a handler outside": "busy_plain", "a coroutine outside": "busy_coroutine"}
BUSY_INSIDE = {"a handler in Python": "busy_inside", "a batch handler": "busy_batches"}
BUSY = {**BUSY_INSIDE, **BUSY_OUTSIDE}
#: For longer than a lease.
LEASE, BUSY_SECONDS = "4 seconds", 10

inside, batches, plain, coroutine = Applier(), Applier(), Applier(), Applier()
busy_inside, busy_batches, busy_plain, busy_coroutine = Applier(), Applier(), Applier(), Applier()


def _die_of(command: Command) -> None:
    if command.key == "bad":
        signal.raise_signal(signal.SIGKILL)


def _write(connection: psycopg.Connection[Any], command: Command) -> None:
    connection.execute(
        "INSERT INTO bad.witness (topic, key, seq) VALUES (%s, %s, %s)",
        (command.topic, command.key, command.seq),
    )


def _inside(connection: psycopg.Connection[Any], command: Command) -> None:
    _write(connection, command)
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


def _occupy_inside(connection: psycopg.Connection[Any], command: Command) -> None:
    _write(connection, command)
    _occupy(command)


def _occupy_in_a_batch(connection: psycopg.Connection[Any], commands: list[Command]) -> None:
    for command in commands:
        _occupy_inside(connection, command)


async def _occupy_the_loop(command: Command) -> None:
    await asyncio.sleep(0)
    _occupy(command)


for _topic in ("bad", "other"):
    inside.handler(_topic)(_inside)
    batches.batch_handler(_topic)(_batches)
    plain.handler(_topic, outside=True)(_die_of)
    coroutine.handler(_topic, outside=True)(_coroutine)
    busy_inside.handler(_topic)(_occupy_inside)
    busy_batches.batch_handler(_topic)(_occupy_in_a_batch)
    busy_plain.handler(_topic, outside=True)(_occupy)
    busy_coroutine.handler(_topic, outside=True)(_occupy_the_loop)


def start(
    database: Database, way: str, port: int, *args: str, module: str = "support.deaths"
) -> InturnProcess | Process:
    """Start a process that applies in a way; its service is at the port, its handlers are in the module."""
    if WAYS[way] == "call":
        return call_client(database.applier_dsn)
    if WAYS[way] == "lease":
        return lease_client(database.applier_dsn, port, "bad", "other", seconds=100)
    app = None if WAYS[way] in {"sql", "post"} else f"{module}:{WAYS[way]}"
    return inturn_apply(database.dsn, *args, app=app)


@contextmanager
def company(database: Database, way: str) -> Iterator[Callable[..., None]]:
    """Make the topics for a way of applying; give what runs a process until it has died, or all is over."""
    running: list[int] = []

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
        # What a SQL target does, the server does: so it is its client that is killed.
        is_at_it = standing.stands if WAYS[way] in IN_SQL else _is_not
        with start(database, way, b.port, *args) as process:
            running.append(process.pid)
            until(
                lambda: not process.running or is_over() or is_at_it(database), "its death, or the end", 100
            )
        if WAYS[way] in IN_SQL:
            standing.let_go(database)

    with B(kill) as b:
        _prepare(database, way, b.port)
        yield run


def _is_not(_: Database) -> bool:
    return False


def _prepare(database: Database, way: str, port: int) -> None:
    if WAYS[way] in IN_SQL:
        bad_company.prepare(database, bad_company.Fault("", sql=standing.STAND), target="sql")
        standing.prepare(database)
    elif WAYS[way] in INSIDE:
        bad_company.prepare(database, bad_company.Fault(""), target="python")
    else:
        target = f"http://127.0.0.1:{port}/" if WAYS[way] == "post" else "python"
        bad_outside.prepare(database, bad_outside.Fault(""), target, lease=LEASE)
