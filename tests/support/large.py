"""One key with large payloads beside healthy ones, in every way of applying that has a process."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from inturn.applier import Applier, Command
from support import bad_company, bad_outside, deaths
from support.b_server import B, say_ok
from support.database import Database

#: How long the payloads of one claim may be together, in place of 16 MiB.
CLAIM = 1_000_000
#: What the bad key has of payloads, each of so many octets: it does not matter how many.
LENGTH, COUNT = 400_000, 100
#: Ways of applying, as in deaths: a CALL has no process.
WAYS = [way for way, what in deaths.WAYS.items() if what != "call"]

inside, batches, plain, coroutine = Applier(), Applier(), Applier(), Applier()


def _nothing(_connection: psycopg.Connection[Any], _commands: Any) -> None: ...


def _plain(_: Command) -> None: ...


async def _coroutine(_: Command) -> None:
    await asyncio.sleep(0)


for _topic in ("bad", "other"):
    inside.handler(_topic)(_nothing)
    batches.batch_handler(_topic)(_nothing)
    plain.handler(_topic, outside=True)(_plain)
    coroutine.handler(_topic, outside=True)(_coroutine)


@contextmanager
def at_work(database: Database, way: str) -> Iterator[int]:
    """Make the topics, and have a process apply while the block runs; give its number."""
    what = deaths.WAYS[way]
    with B(say_ok) as b:
        if what in deaths.INSIDE:
            fault = bad_company.Fault("", sql="NULL;")
            bad_company.prepare(database, fault, target="sql" if what in deaths.IN_SQL else "python")
        else:
            target = f"http://127.0.0.1:{b.port}/" if what == "post" else "python"
            bad_outside.prepare(database, bad_outside.Fault(""), target)
        database.administer(f"ALTER DATABASE {database.name} SET inturn.max_claim_octets = {CLAIM}")
        with deaths.start(database, way, b.port, module="support.large") as process:
            yield process.pid


def append(database: Database) -> None:
    """Give the bad key all of its payloads."""
    database.execute(
        "SELECT count(inturn.append('bad', 'bad', 'insert', jsonb_build_object('x', repeat('x', %s))))"
        " FROM generate_series(1, %s)",
        [LENGTH, COUNT],
    )


def peak(pid: int) -> int:
    """Return the most memory that a process has had, in octets."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
