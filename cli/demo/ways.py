"""The ways by which the calls of the demo's service A reach service B."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psycopg

from inturn.applier import headers as names
from inturn.cli.demo import plan as plans
from inturn.cli.demo.database import (
    MERGED,
    NUMBERED,
    Findings,
    create_posted,
    find,
    is_applied,
    note_calls,
)
from inturn.cli.demo.front import Front, Routing
from inturn.cli.demo.http import HOST, Client
from inturn.cli.demo.machine import THREADS
from inturn.cli.demo.plan import Call, Orders
from inturn.cli.demo.processes import Process, Start, running
from inturn.cli.errors import Failure
from inturn.outbox import append, append_async
from inturn.schema.connection import connect, connect_async

#: The topics that A fills itself, and whose commands are posted to B.
POSTED, POSTED_KILLED = "orders-posted", "orders-posted-killed"
#: The one that is numbered on arrival.
ARRIVED = "orders-arrived"
#: What the table calls what happens in the course of a way.
KILLED, HOT = "  one machine killed, one added", "  one hot key"
HOT_ARRIVED = "  one hot key, by arrival"
MERGED_TITLE = "  merged insert + delete"
#: A turns to the next order after the first time, and to the next command of an order after the second.
ORDER_SECONDS, GAP_SECONDS = 0.003, 0.003

_MACHINES = ("B1", "B2", "B3", "B4")
_A_CONNECTIONS = 64
_A_SESSIONS = 8
_RETRY_SECONDS = 0.02
# For a way, and more for each of its commands.
_PATIENCE_SECONDS, _PATIENCE_PER_COMMAND = 60.0, 0.1

Send = Callable[[Call], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Result:
    """How a way went.

    Attributes:
        title: what the table calls it.
        safe: it promises that nothing is wrong.
    """

    title: str
    findings: Findings
    seconds: float
    safe: bool = False


@dataclass(slots=True)
class Scene:
    """Service A, the front, the machines of B that are in service and those to come, and B's database."""

    dsn: str
    tell: Callable[[str], None]
    connection: psycopg.Connection[Any]
    front: Front
    a: Client
    serving: list[tuple[str, Process]]
    reserve: list[tuple[str, Process]]
    events: dict[int, Callable[[], None]] = field(default_factory=dict)

    async def send(self, how: str, way: str, call: Call) -> None:
        """Be A, which sends a call to B, and again while no answer says that B has it."""
        headers = {
            names.KEY: names.encode(call.key),
            names.SEQ: str(call.seq),
            names.COMMAND: names.encode(call.name),
        }
        body = json.dumps({"work": call.work}).encode()
        while True:
            answer = await self.a.ask("POST", f"/{how}/{way}", headers, body)
            if answer.status < 300:  # noqa: PLR2004 - HTTP's 2xx
                return
            await asyncio.sleep(_RETRY_SECONDS)

    async def call_all(self, orders: Orders, send: Send, *, in_sequence: bool) -> None:
        """Be A, which gives the commands of every order to `send`.

        in_sequence: each when the one before was taken; else shortly after it, whatever became of that.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                for number, order in enumerate(orders):
                    if number in self.events:
                        self.events.pop(number)()
                    tasks.create_task(_give(order, send, tasks, in_sequence=in_sequence))
                    await asyncio.sleep(ORDER_SECONDS)
        except ExceptionGroup as errors:
            raise _first(errors) from None

    def plan_events(self, orders: Orders) -> None:
        """Let a machine die after a third of the orders, and another one come after two."""
        self.events = {len(orders) // 3: self.kill_one, len(orders) * 2 // 3: self.add_one}

    def kill_one(self) -> None:
        """Let a machine die."""
        self.serving.pop(0)[1].kill()

    def add_one(self) -> None:
        """Put another machine into service."""
        name, process = self.reserve.pop(0)
        self.serving.append((name, process))
        self.front.add(name, int(process.said))

    async def until_queues_are_empty(self) -> None:
        """Wait until the machines that live have nothing left in memory."""
        for _, process in self.serving:
            machine = Client(int(process.said), 1)
            while int((await machine.ask("GET", "/", {})).body):
                await asyncio.sleep(0.01)
            await machine.close()

    async def until_applied(self, topic: str, orders: Orders) -> None:
        """Wait until inturn has applied every command."""
        while not is_applied(self.connection, topic, orders):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def scene(dsn: str, seed: int, tell: Callable[[str], None]) -> AsyncIterator[Scene]:
    """Set the scene: two machines of B, two in reserve, the front, and the applier that posts to it.

    tell: is told what comes next.
    """
    tell("the processes start")
    front = Front(THREADS, partial(plans.seconds_on_the_way, seed=seed))
    a = await front.start(_A_CONNECTIONS)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(front.close)
        stack.push_async_callback(a.close)
        connection = stack.enter_context(connect(dsn, for_handlers=True))
        for topic, how in ((POSTED, "handle"), (POSTED_KILLED, "accept")):
            create_posted(connection, topic, f"http://{HOST}:{front.port}/{how}/{topic}")
        create_posted(connection, ARRIVED, f"http://{HOST}:{front.port}/handle/{ARRIVED}", "arrival")
        starts = [Start("inturn.cli.demo.machine", {"dsn": dsn, "name": name}) for name in _MACHINES]
        starts.append(
            Start("inturn.cli.demo.applier", {"dsn": dsn, "topics": [POSTED, POSTED_KILLED, ARRIVED]})
        )
        *processes, _ = await stack.enter_async_context(running(starts))
        on = Scene(dsn, tell, connection, front, a, [], list(zip(_MACHINES, processes, strict=True)))
        on.add_one()
        on.add_one()
        yield on


async def direct(on: Scene, orders: Orders) -> Result:
    """Let any machine handle a call as it comes."""
    async with _timed(on, "direct calls", "direct", orders) as result:
        await on.call_all(orders, partial(on.send, "handle", "direct"), in_sequence=False)
    return result()


async def lock(on: Scene, orders: Orders) -> Result:
    """Let any machine handle a call, under a lock of its key."""
    async with _timed(on, "a lock per key", "lock", orders) as result:
        await on.call_all(orders, partial(on.send, "lock", "lock"), in_sequence=False)
    return result()


async def ring(on: Scene, orders: Orders, *, killed: bool = False, hot: bool = False) -> Result:
    """Let a key's own machine queue its calls in memory."""
    way, title = "ring", "a ring, queues in memory"
    if killed:
        way, title = "ring-killed", KILLED
        on.plan_events(orders)
    if hot:
        way, title = "ring-hot", HOT
    async with _timed(on, title, way, orders, routing="ring") as result:
        await on.call_all(orders, partial(on.send, "queue", way), in_sequence=True)
        await on.until_queues_are_empty()
    return result()


async def a_appends(on: Scene, orders: Orders, *, killed: bool = False, hot: bool = False) -> Result:
    """Let A append, and inturn post to any machine of B.

    killed: one machine dies and another one comes; B asks inturn.accept before it does anything.
    hot: one key has most of the commands, which are numbered on arrival.
    """
    topic, title = POSTED, "inturn: A appends, HTTP to B"
    if hot:
        topic, title = ARRIVED, HOT_ARRIVED
    if killed:
        topic, title = POSTED_KILLED, KILLED
        on.plan_events(orders)
    async with _sessions(on.dsn) as sessions:

        async def send(call: Call) -> None:
            session = await sessions.get()
            try:
                await append_async(session, topic, call.key, call.name, {"work": call.work})
            finally:
                sessions.put_nowait(session)

        async with _timed(on, title, topic, orders, safe=True) as result:
            await on.call_all(orders, send, in_sequence=True)
            await on.until_applied(topic, orders)
    return result()


async def b_appends(on: Scene, orders: Orders) -> Result:
    """Let A number its calls, any machine of B append them, and B's database apply them."""
    async with _timed(on, "inturn: B appends A's numbers", NUMBERED, orders, safe=True) as result:
        await on.call_all(orders, partial(on.send, "append", NUMBERED), in_sequence=False)
        await on.until_applied(NUMBERED, orders)
    return result()


async def merged(on: Scene, orders: Orders) -> Result:
    """Let A append while B is away; then B's database applies what is left when it is merged."""
    async with _timed(on, MERGED_TITLE, MERGED, orders, safe=True) as result:
        for order in orders:
            for call in order:
                append(on.connection, MERGED, call.key, call.name, {"work": call.work})
        on.connection.execute("SELECT inturn.resume_topic(%s)", (MERGED,))
        await on.until_applied(MERGED, orders)
    return result()


async def _give(order: Sequence[Call], send: Send, tasks: asyncio.TaskGroup, *, in_sequence: bool) -> None:
    for call in order:
        if in_sequence:
            await send(call)
        else:
            tasks.create_task(send(call))
        await asyncio.sleep(GAP_SECONDS)


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@asynccontextmanager
async def _timed(
    on: Scene, title: str, way: str, orders: Orders, *, routing: Routing = "round robin", safe: bool = False
) -> AsyncIterator[Callable[[], Result]]:
    """Time a way, end it when it takes too long, and give what tells how it went."""
    on.tell(title.strip())
    note_calls(on.connection, way, orders)
    on.front.routing = routing
    started_at = time.monotonic()
    seconds = 0.0
    patience = _PATIENCE_SECONDS + _PATIENCE_PER_COMMAND * sum(map(len, orders))
    try:
        async with asyncio.timeout(patience):
            yield lambda: Result(title, find(on.connection, way), seconds, safe)
    except TimeoutError:
        raise Failure(f"{title.strip()}: not done within {patience:.0f} s") from None
    seconds = time.monotonic() - started_at


@asynccontextmanager
async def _sessions(dsn: str) -> AsyncIterator[asyncio.Queue[psycopg.AsyncConnection[Any]]]:
    """Open A's sessions in the database."""
    free: asyncio.Queue[psycopg.AsyncConnection[Any]] = asyncio.Queue()
    async with AsyncExitStack() as stack:
        for _ in range(_A_SESSIONS):
            session = await connect_async(dsn)
            free.put_nowait(await stack.enter_async_context(session))
        yield free
