"""B: a service over sockets that keeps a log of what it saw, and answers as a test tells it to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeAlias
from urllib.parse import unquote

from inturn.applier import Applier, Fleet, Outcome
from support import shop
from support.database import Database, until

TOPIC = "posts"


@dataclass(frozen=True)
class Post:
    """A request as B saw it."""

    number: int
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def key(self) -> str:
        return unquote(self.headers["inturn-key"])

    @property
    def seq(self) -> int:
        return int(self.headers["inturn-seq"])

    @property
    def name(self) -> str:
        return unquote(self.headers["inturn-command"])

    @property
    def attempt(self) -> int:
        return int(self.headers["inturn-attempt"])

    @property
    def epoch(self) -> int:
        return int(self.headers["inturn-epoch"])

    @property
    def idempotency_key(self) -> str:
        return self.headers["idempotency-key"]


#: Writes the answer to a post; what it leaves open is kept alive, unless it returns False.
Answer: TypeAlias = Callable[[Post, asyncio.StreamWriter], Awaitable[bool | None]]


def answer(status: int = 200, body: bytes = b"{}", **headers: str) -> bytes:
    """Return an answer's bytes; in the headers' names _ stands for -."""
    lines = [f"HTTP/1.1 {status} Said", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def say_ok(_: Post, writer: asyncio.StreamWriter) -> None:
    writer.write(answer())


class Gate:
    """What answers wait at until it is opened, from any thread."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.standing = 0

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        self.standing += 1
        while not self._open.is_set():
            await asyncio.sleep(0.002)


@dataclass
class B:
    """The service, in a thread of the test's process.

    Attributes:
        log: every request, in the order in which they were read whole.
        say: what it answers.
    """

    say: Answer = say_ok
    log: list[Post] = field(default_factory=list)
    connections: int = 0
    readers: dict[int, asyncio.StreamReader] = field(default_factory=dict)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/commands"

    def of(self, key: str) -> list[Post]:
        return [post for post in list(self.log) if post.key == key]

    def hung_up(self, post: Post) -> bool:
        """Return whether who sent the post has closed its connection."""
        return self.readers[post.connection].at_eof()

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()

        async def serve() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1000)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            self._over = asyncio.Event()
            await self._over.wait()
            server.close()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(serve())
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

        self._thread = threading.Thread(target=run, name="b-server")
        self._thread.start()
        assert ready.wait(60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = self.connections
        self.readers[connection] = reader
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii").split("\r\n")
                headers = {}
                for line in head[1:-2]:
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                post = Post(len(self.log), head[0].split(" ")[1], headers, body, connection)
                self.log.append(post)
                if await self.say(post, writer) is False:
                    break
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.transport.abort()


def open_topic(database: Database, target: str, settings: str = "backoff_base => '10 ms'") -> None:
    """Create the topic `posts` with this target; settings are further arguments of create_topic."""
    database.execute(f"SELECT inturn.create_topic(%s, %s, {settings})", [TOPIC, target])


def put(database: Database, key: str, *names: str) -> None:
    """Append commands to a key of the topic `posts`."""
    for name in names:
        database.execute(
            "SELECT inturn.append(%s, %s, %s, jsonb_build_object('name', %s::text))", [TOPIC, key, name, name]
        )


def put_keys(database: Database, keys: int, commands: int = 1) -> None:
    """Append so many commands to each of many keys, in one transaction."""
    database.execute(
        "SELECT count(inturn.append(%s, 'k' || k, 'insert'))"
        " FROM generate_series(1, %s) c, generate_series(1, %s) k",
        [TOPIC, commands, keys],
    )


def is_applied(database: Database) -> bool:
    """Return whether every command has been applied and no key is in anyone's hands."""
    return not database.value(
        "SELECT count(*) FROM inturn.key_cursor c WHERE ready_at IS NOT NULL OR claimed_by IS NOT NULL"
        " OR held_at IS NOT NULL OR applied_seq <> (SELECT max(seq) FROM inturn.command_log l"
        " WHERE (l.topic, l.key) = (c.topic, c.key))"
    )


def wait_applied(database: Database, patience: float = 30) -> None:
    until(lambda: is_applied(database), "everything applied", patience)


def state(database: Database, key: str) -> tuple[object, ...]:
    """Return a key's state, how far it is applied, its failed attempts and its last error."""
    return database.execute(
        "SELECT inturn.key_state(c), applied_seq, attempts, last_error"
        " FROM inturn.key_cursor c WHERE key = %s",
        [key],
    )[0]


def assert_in_turn(database: Database, log: list[Post]) -> None:
    """Every key's posts are its commands in order, none left out; repeats stand next to each other."""
    expected: dict[str, list[int]] = {}
    for key, seq in database.execute("SELECT key, seq FROM inturn.command_log ORDER BY key, seq"):
        expected.setdefault(key, []).append(seq)
    seen: dict[str, list[Post]] = {}
    for post in log:
        seen.setdefault(post.key, []).append(post)
    names: dict[str, tuple[str, int]] = {}
    for key, posts in seen.items():
        for post in posts:
            assert names.setdefault(post.idempotency_key, (key, post.seq)) == (key, post.seq)
    assert len(names) == sum(map(len, expected.values()))
    once = {
        key: [
            post.seq
            for post, before in zip(posts, [None, *posts], strict=False)
            if before is None or before.idempotency_key != post.idempotency_key
        ]
        for key, posts in seen.items()
    }
    assert once == expected


def apply_all(database: Database, handlers: Applier | None = None, **options: Any) -> Outcome:
    """Drain with a fleet of this process, of any topics."""
    return shop.apply_all(database, handlers or Applier(), **options)


def at_work(
    database: Database, handlers: Applier | None = None, **options: Any
) -> AbstractContextManager[Fleet]:
    """Run a fleet of this process, of any topics, while the block runs."""
    return shop.at_work(database, handlers or Applier(), **options)
