"""What the bad days of HTTP targets have in common."""

from __future__ import annotations

import asyncio

from inturn.applier import Timeouts
from support.b_server import (
    Answer,
    Gate,
    Post,
    answer,
)
from support.database import Database, until
from support.process import InturnProcess, inturn_apply

PATIENT = Timeouts(3600, 3600, 3600)
SHORT_LEASE = "lease => '400 ms', backoff_base => '10 ms'"
#: It runs out where a test says so, and however slow the machine is, not before.
LONG_LEASE = "lease => '1 hour', backoff_base => '10 ms'"


def facts(database: Database) -> list[tuple[object, ...]]:
    """Return all that an applier writes about keys."""
    return [
        *database.execute(
            "SELECT key, applied_seq, epoch, attempts, claimed_by FROM inturn.key_cursor ORDER BY key"
        ),
        *database.execute(
            "SELECT key, epoch, from_seq, to_seq, outcome, applier FROM inturn.turn ORDER BY key, epoch"
        ),
    ]


def held_back(gate: Gate) -> Answer:
    """Answer at once, but the first post only once the gate is open."""

    async def say(post: Post, writer: asyncio.StreamWriter) -> None:
        if post.number == 0:
            await gate.passed()
        writer.write(answer())

    return say


def all_held_back(gate: Gate) -> Answer:
    """Answer the posts of the first command only once the gate is open."""

    async def say(post: Post, writer: asyncio.StreamWriter) -> None:
        if post.seq == 1:
            await gate.passed()
        writer.write(answer())

    return say


def posts_elsewhere(database: Database) -> InturnProcess:
    return inturn_apply(database.dsn, app=None)


def wait_fenced(process: InturnProcess) -> None:
    until(lambda: "fenced off" in process.err, "the late applier to learn that it is fenced off")
