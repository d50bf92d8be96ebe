"""A guard behind P1 to P4, taken out of the SQL once: its scene has to end badly.

A scene that ends well without the guard that it is there for would prove nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
import pytest

from support.database import Database
from support.oracle import Oracle
from support.race import replace_in


@dataclass(frozen=True)
class Guard:
    """What keeps a promise, the function and the edits that take it out, its scene, and what shows there."""

    name: str
    function: str
    edits: tuple[tuple[str, str], ...]
    scene: Callable[[Database, Oracle], None]
    sign: str


#: How finish finds out whether a key that it holds has more commands.
LOOK = r"t\.locked IS NOT NULL AND l\.next IS NOT TRUE"

#: The same of _requeue.
SETTLE_LOOK = (r"SELECT NOT EXISTS \([^;]*?\) INTO missing", "SELECT true INTO missing")

#: The check moves into the statement that locks, and so on that statement's snapshot.
ON_ONE_SNAPSHOT = (
    (
        r"WHERE s\.topic = _finish\.topic AND s\.key >= t\.key AND s\.key <= t\.key(?= AND app|\s+ORDER BY)",
        """WHERE s.topic = _finish.topic AND s.key >= t.key AND s.key <= t.key AND NOT EXISTS (
            SELECT FROM inturn.command_log l JOIN unnest(keys, applied_seqs) a (key, seq) ON a.key = l.key
            WHERE l.topic = _finish.topic AND l.key = s.key AND l.seq = a.seq + 1)""",
    ),
    (LOOK, "t.locked IS NOT NULL"),
)
#: Within the claim's own transaction nobody else can have had a turn: the epoch is the second fence.
HELD = r"\s+AND [ct]\.xmax = pg_current_xact_id\(\)::xid"
#: Which append wakes the key.
WAKES = r"u\.drained AND l\.name IS NULL"
#: When a paused key is ready.
PAUSED_READY = r"cursor\.ready_at := inturn\._next_ready_at\(cursor, NULL\);"
HEEDS_LEASE = (r"c\.paused_until, c\.lease_until\) END", "c.paused_until) END")
CLAIM = "claim(text, timestamptz, integer)"
FAIL = "fail(text, text, bigint, bigint, bigint, text, text, text, interval, interval)"
WAITS = "waits for a lock"
NOT_READY = re.escape("assert [] == ['x']")
NOT_WOKEN = "P4: the next append will not wake it"
NOT_FENCED = "DID NOT RAISE|'23505' == 'IT030'"


def ends_badly(witness: Database, guard: Guard) -> None:
    """Take the guard out, and see its scene end badly, for its reason."""
    replace_in(witness, guard.function, *guard.edits)
    with pytest.raises((AssertionError, pytest.fail.Exception, psycopg.Error)) as caught:
        guard.scene(witness, Oracle(witness))
    shown = f"{type(caught.value).__name__}: {caught.value}"
    assert re.search(guard.sign, shown), f"ended badly for another reason: {shown}"
