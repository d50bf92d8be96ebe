"""One of every kind of target, for what all of them have to do: tests/conformance.

A command named `fail` fails, one named `flaky` fails at its first attempt.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from inturn.applier import Applier, Command, targets
from inturn.applier.command import ClaimedCommand
from inturn.applier.outside.effect import Effect, Failed
from inturn.applier.outside.leases import Lease
from inturn.applier.targets import Kind, Parts, Served
from support.b_server import B, Post, answer
from support.database import Database

TOPIC = "orders"
_SCHEMA = """
    CREATE SCHEMA app;
    CREATE TABLE app.effect (id bigserial PRIMARY KEY, key text NOT NULL, seq bigint NOT NULL);
    CREATE FUNCTION app.apply(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF command.name = 'fail' OR command.name = 'flaky' AND command.attempt = 1 THEN
            RAISE EXCEPTION 'refused %', command.key;
        END IF;
        INSERT INTO app.effect (key, seq) VALUES (command.key, command.seq);
    END $$;
    CREATE FUNCTION app.apply_all(commands inturn.command[]) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
        refused inturn.command;
    BEGIN
        INSERT INTO app.effect (key, seq) SELECT c.key, c.seq FROM unnest(commands) c ORDER BY c.seq;
        FOREACH refused IN ARRAY commands LOOP
            IF refused.name = 'fail' OR refused.name = 'flaky' AND refused.attempt = 1 THEN
                RAISE EXCEPTION 'refused %', refused.key;
            END IF;
        END LOOP;
        RETURN cardinality(commands);
    END $$;
"""


def _refuses(name: str, attempt: int) -> bool:
    return name == "fail" or (name == "flaky" and attempt == 1)


@dataclass
class Subject:
    """A target at work.

    Attributes:
        target: as create_topic takes it.
        handlers: what the fleet is given.
        seen: effects outside the database, in their order.
        within: effects are in the database, and exactly once.
    """

    target: str
    handlers: Applier = field(default_factory=Applier)
    seen: list[tuple[str, int]] = field(default_factory=list)
    within: bool = False

    def effects(self, database: Database, key: str) -> list[int]:
        """Return the numbers of the key's commands in the order in which they took effect."""
        if self.within:
            rows = database.execute("SELECT key, seq FROM app.effect ORDER BY id")
        else:
            rows = list(self.seen)
        return [seq for found, seq in rows if found == key]


@contextmanager
def _sql(_: Path) -> Iterator[Subject]:
    yield Subject("sql:app.apply", within=True)


@contextmanager
def _sql_in_batches(_: Path) -> Iterator[Subject]:
    yield Subject("sql:app.apply_all", within=True)


@contextmanager
def _python(_: Path) -> Iterator[Subject]:
    subject = Subject("python", within=True)

    @subject.handlers.handler(TOPIC)
    def apply(connection: psycopg.Connection[Any], command: Command) -> None:
        if _refuses(command.name, command.attempt):
            raise ValueError(f"refused {command.key}")
        connection.execute("INSERT INTO app.effect (key, seq) VALUES (%s, %s)", (command.key, command.seq))

    yield subject


@contextmanager
def _python_in_batches(_: Path) -> Iterator[Subject]:
    subject = Subject("python", within=True)

    @subject.handlers.batch_handler(TOPIC)
    def apply(connection: psycopg.Connection[Any], commands: list[Command]) -> None:
        keys, seqs = [command.key for command in commands], [command.seq for command in commands]
        connection.execute(
            "INSERT INTO app.effect (key, seq) SELECT key, seq"
            " FROM unnest(%s::text[], %s::bigint[]) WITH ORDINALITY c (key, seq, place) ORDER BY place",
            (keys, seqs),
        )
        for command in commands:
            if _refuses(command.name, command.attempt):
                raise ValueError(f"refused {command.key}")

    yield subject


@contextmanager
def _outside(_: Path) -> Iterator[Subject]:
    subject = Subject("python")

    @subject.handlers.handler(TOPIC, outside=True)
    def apply(command: Command) -> None:
        if _refuses(command.name, command.attempt):
            raise ValueError(f"refused {command.key}")
        subject.seen.append((command.key, command.seq))

    yield subject


@contextmanager
def _coroutine(_: Path) -> Iterator[Subject]:
    subject = Subject("python")

    @subject.handlers.handler(TOPIC, outside=True)
    async def apply(command: Command) -> None:
        await asyncio.sleep(0)
        if _refuses(command.name, command.attempt):
            raise ValueError(f"refused {command.key}")
        subject.seen.append((command.key, command.seq))

    yield subject


@contextmanager
def _http(_: Path) -> Iterator[Subject]:
    subject = Subject("")

    async def say(post: Post, writer: asyncio.StreamWriter) -> None:
        if _refuses(post.name, post.attempt):
            writer.write(answer(500, f"refused {post.key}".encode()))
            return
        subject.seen.append((post.key, post.seq))
        writer.write(answer())

    with B(say) as b:
        subject.target = b.url
        yield subject


class _FileEffect:
    """Writes each command into a file: the whole of a target kind of one's own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def stops_when_cut(self, order: ClaimedCommand) -> bool:
        return True

    async def apply(self, order: ClaimedCommand, lease: Lease) -> Failed | None:
        if _refuses(order.name, order.attempt):
            return Failed(f"refused {order.key}")
        with self._lock, self._path.open("a") as file:
            file.write(json.dumps([order.key, order.seq]) + "\n")
        return None

    async def tidy(self) -> None: ...

    async def close(self) -> None: ...


def _write(served: Served, _: Parts) -> Effect:
    return _FileEffect(Path(served.target.removeprefix("file:")))


#: The row that a kind adds to _target_kinds.
_FILE_ROW = "('file', '^file:.', 'file:PATH', 'inturn apply --topic {topic}')"


@dataclass
class _FileSubject(Subject):
    path: Path = Path()

    def effects(self, database: Database, key: str) -> list[int]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [seq for found, seq in map(json.loads, lines) if found == key]


@contextmanager
def _toy(folder: Path) -> Iterator[Subject]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(targets.KINDS, "file", Kind(("file:",), outside=_write))
        yield _FileSubject(f"file:{folder / 'effects'}", path=folder / "effects")


#: kind → what makes one. A new kind gets its line here, and has to pass tests/conformance.
KINDS = {
    "sql": _sql,
    "sql, in batches": _sql_in_batches,
    "python": _python,
    "python, in batches": _python_in_batches,
    "python outside": _outside,
    "python outside, async": _coroutine,
    "http": _http,
    "a toy": _toy,
}


def open_topic(database: Database, subject: Subject) -> None:
    """Create what the subject needs, and its topic."""
    database.execute(_SCHEMA)
    if subject.target.startswith("file:"):
        body = database.value("SELECT prosrc FROM pg_proc WHERE oid = 'inturn._target_kinds'::regproc")
        database.execute(
            "CREATE OR REPLACE FUNCTION inturn._target_kinds()"
            " RETURNS TABLE (kind text, pattern text, written text, to_run text)"
            f" LANGUAGE sql IMMUTABLE AS $f$ {body.rstrip()}, {_FILE_ROW} $f$"
        )
    database.execute(
        "SELECT inturn.create_topic(%s, %s, max_attempts => 2,"
        " backoff_base => '10 ms', backoff_cap => '10 ms')",
        [TOPIC, subject.target],
    )
