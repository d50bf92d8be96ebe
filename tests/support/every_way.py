"""An application with a topic for every way of applying, and what calls and applies there over and over.

What takes effect outside the database is noted in the file that EFFECTS names.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import create_engine

from inturn.applier import Applier, Command
from inturn.outbox import append, append_async, wait
from support.database import Database

#: Each topic is named for what applies it, by its target; of HTTP it is the service's address.
TARGETS = {
    "handler": "python",
    "sql": "sql:app.apply",
    "plain": "python",
    "coroutine": "python",
    "http": "",
    "call": "sql:app.apply",
    "lease": "python",
}
#: Those that processes of `inturn apply` apply, and those that need their handlers.
DAEMONS = ("handler", "sql", "plain", "coroutine", "http")
HANDLERS = ("handler", "plain", "coroutine")
#: Those that take effect outside of the database.
OUTSIDE = {"plain", "coroutine", "http", "lease"}
_SCHEMA = """
    CREATE SCHEMA app;
    CREATE TABLE app.sale (topic text, key text, seq bigint);
    CREATE TABLE app.effect (id bigserial, topic text, key text, seq bigint);
    CREATE FUNCTION app.apply(command inturn.command) RETURNS void LANGUAGE sql AS $$
        INSERT INTO app.effect (topic, key, seq) VALUES (command.topic, command.key, command.seq) $$;
"""
_SALE = "INSERT INTO app.sale VALUES (%s, %s, %s)"
_CLAIM = "SELECT key, epoch, seq FROM inturn.claim('{lease}'::text[], 4, NULL, NULL)"
_PAUSE = 0.02

applier = Applier()


@applier.handler("handler")
def _inside(connection: psycopg.Connection[Any], command: Command) -> None:
    row = (command.topic, command.key, command.seq)
    connection.execute("INSERT INTO app.effect (topic, key, seq) VALUES (%s, %s, %s)", row)


@applier.handler("plain", outside=True)
def _plain(command: Command) -> None:
    _note(command)


@applier.handler("coroutine", outside=True)
async def _coroutine(command: Command) -> None:
    await asyncio.sleep(0)
    _note(command)


def _note(command: Command) -> None:
    with Path(os.environ["EFFECTS"]).open("a") as file:
        file.write(f"{command.topic} {command.key} {command.seq}\n")


def open_topics(database: Database, url: str) -> None:
    """Create the topics, and what they need: what fails is held at once. url: of the service."""
    database.execute(_SCHEMA)
    for topic, target in TARGETS.items():
        database.execute("SELECT inturn.create_topic(%s, %s, max_attempts => 1)", [topic, target or url])


class _Threads:
    """What each does, in a thread of its own, until the block ends.

    Attributes:
        counted: how often each has done it.
        running: each one's thread.
    """

    def __init__(self, database: Database, *work: Callable[[], None]) -> None:
        self._database = database
        self._over = threading.Event()
        self._work = {each.__name__.lstrip("_"): each for each in work}
        self.counted = dict.fromkeys(self._work, 0)
        self.running: dict[str, Future[None]] = {}

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with ThreadPoolExecutor(len(self._work)) as threads:
            self.running = {name: threads.submit(each) for name, each in self._work.items()}
            try:
                yield
            finally:
                self._over.set()


class Callers(_Threads):
    """Callers in every way; each appends in a transaction with business of its own."""

    def __init__(self, database: Database) -> None:
        super().__init__(
            database, self._by_function, self._by_view, self._by_library, self._in_a_loop, self._by_waiting
        )

    def _next(self, caller: str) -> tuple[str, str]:
        """Return the topic and key of a caller's next command: each topic, then each of its keys."""
        number = self.counted[caller]
        topics = list(TARGETS)
        return topics[number % len(topics)], f"{caller}-{number // len(topics) % 2}"

    def _sql(self, caller: str, statement: str, after: Callable[..., object] = lambda *_: None) -> None:
        """Append by a statement that the server has prepared, with a cached plan, and business beside it."""
        with psycopg.connect(self._database.caller_dsn, prepare_threshold=0) as connection:
            while not self._over.wait(_PAUSE):
                place = self._next(caller)
                with connection.transaction():
                    row = connection.execute(statement, place, prepare=True).fetchone()
                    assert row is not None
                    connection.execute(_SALE, (*place, row[0]))
                after(connection, *place, row[0])
                self.counted[caller] += 1

    def _by_function(self) -> None:
        self._sql("by_function", "SELECT inturn.append(%s, %s, 'insert')")

    def _by_view(self) -> None:
        insert = "INSERT INTO inturn.outbox (topic, key, name, payload) VALUES (%s, %s, 'insert', '{}')"
        self._sql("by_view", f"{insert} RETURNING seq")

    def _by_waiting(self) -> None:
        """Append and wait, by the function and by the library in turn."""

        def waited(connection: psycopg.Connection[Any], topic: str, key: str, seq: int) -> None:
            if self.counted["by_waiting"] // len(TARGETS) % 2:
                wait(connection, topic, key, seq, timeout=600)
            else:
                query = "SELECT inturn.wait(%s, %s, %s, '10 minutes')"
                with connection.transaction():
                    connection.execute(query, (topic, key, seq), prepare=True)

        self._sql("by_waiting", "SELECT inturn.append(%s, %s, 'insert')", waited)

    def _by_library(self) -> None:
        """Append on the connections of SQLAlchemy's pool."""
        dsn = self._database.caller_dsn
        engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
        while not self._over.wait(_PAUSE):
            topic, key = self._next("by_library")
            with engine.begin() as connection:
                seq = append(connection, topic, key, "insert")
                connection.exec_driver_sql(_SALE, (topic, key, seq))
            self.counted["by_library"] += 1
        engine.dispose()

    def _in_a_loop(self) -> None:
        """Append by the library in an event loop."""

        async def run() -> None:
            async with await psycopg.AsyncConnection.connect(self._database.caller_dsn) as connection:
                while not self._over.is_set():
                    await asyncio.sleep(_PAUSE)
                    place = self._next("in_a_loop")
                    async with connection.transaction():
                        seq = await append_async(connection, *place, "insert")
                        await connection.execute(_SALE, (*place, seq))
                    self.counted["in_a_loop"] += 1

        asyncio.run(run())


class Appliers(_Threads):
    """A session that calls the procedure, and a client that claims by lease in SQL.

    Attributes:
        leased: what the second did, in order.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database, self._call, self._lease)
        self.leased: list[tuple[str, str, int]] = []

    def _call(self) -> None:
        with psycopg.connect(self._database.applier_dsn, autocommit=True) as connection:
            while not self._over.wait(_PAUSE):
                connection.execute("CALL inturn.apply('{call}')")
                self.counted["call"] += 1

    def _lease(self) -> None:
        with psycopg.connect(self._database.applier_dsn, autocommit=True, prepare_threshold=0) as connection:
            while not self._over.wait(_PAUSE):
                claimed = connection.execute(_CLAIM).fetchall()
                for (key, epoch), commands in groupby(claimed, itemgetter(0, 1)):
                    for _, _, seq in commands:
                        self.leased.append(("lease", key, seq))
                        connection.execute("SELECT inturn.advance('lease', %s, %s, %s)", (key, epoch, seq))
                    connection.execute("SELECT inturn.release('lease', %s, %s)", (key, epoch))
                self.counted["lease"] += 1
