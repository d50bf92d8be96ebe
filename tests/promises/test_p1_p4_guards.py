"""The guards behind P1 to P4, each taken out of the SQL once: its scene has to end badly.

A scene that ends well without the guard that it is there for would prove nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
import pytest
from support import scenes
from support.crowd import Crowd
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
_LOOK = r"t\.sequence IS NOT NULL AND \(.*?\) IS NULL"

#: The check moves into the statement that locks, and so on that statement's snapshot.
_ON_ONE_SNAPSHOT = (
    (
        r"WHERE s\.topic = finish\.topic AND s\.key = t\.key(?= AND app|\s+FOR UPDATE)",
        """WHERE s.topic = finish.topic AND s.key = t.key AND NOT EXISTS (
            SELECT FROM inturn.command_log l JOIN unnest(keys, applied_seqs) a (key, seq) ON a.key = l.key
            WHERE l.topic = finish.topic AND l.key = s.key AND l.seq = a.seq + 1)""",
    ),
    (_LOOK, "t.sequence IS NOT NULL"),
)
#: Within the claim's own transaction nobody else can have had a turn: the epoch is the second fence.
_HELD = r" AND c\.xmax = pg_current_xact_id\(\)::xid"
_WAITS = "waits for a lock"
_NOT_READY = re.escape("assert [] == ['x']")
_NOT_FENCED = "DID NOT RAISE|'23505' == 'IT030'"

GUARDS = [
    Guard(
        "append locks the key",
        "append",
        ((r"\s+FOR UPDATE;", ";"),),
        scenes.second_caller_waits,
        "UniqueViolation",
    ),
    Guard(
        "append wakes a drained key",
        "append",
        ((r"new_seq = drained \+ 1", "false"),),
        scenes.append_to_a_drained_key,
        _NOT_READY,
    ),
    Guard(
        "append leaves a held key alone",
        "append",
        ((r"new_seq = drained \+ 1", "true"),),
        scenes.append_to_a_held_key,
        "held and ready at once",
    ),
    Guard(
        "append waits for no handler",
        "append",
        ((r"new_seq = drained \+ 1", "true"),),
        scenes.callers_of_a_key_at_work,
        _WAITS,
    ),
    Guard(
        "append_many locks in one order",
        "append_many",
        ((r"ORDER BY c\.key COLLATE \"C\", c\.position", "ORDER BY c.position"),),
        scenes.append_many_crosswise,
        "DeadlockDetected",
    ),
    Guard(
        "claim locks",
        "claim",
        ((r"FOR UPDATE SKIP LOCKED", ""),),
        scenes.claim_beside_a_locked_head,
        r"Turn\(key='x'",
    ),
    Guard(
        "claim skips what is locked",
        "claim",
        ((r" SKIP LOCKED", ""),),
        scenes.claim_beside_a_locked_head,
        _WAITS,
    ),
    Guard(
        "claim heeds ready_at",
        "claim",
        ((r" AND c\.ready_at <= now", ""),),
        scenes.claim_before_its_time,
        r"Turn\(key='x'",
    ),
    Guard(
        "commands are read in order",
        "target_query",
        ((r"ORDER BY l\.seq LIMIT", "ORDER BY l.seq DESC LIMIT"),),
        scenes.order_within_a_turn,
        "P3: applied out of turn",
    ),
    Guard(
        "finish heeds the epoch",
        "move_cursors",
        ((rf"{_HELD}\s+AND c\.epoch = t\.epoch - 1", ""),),
        scenes.late_finish_after_a_failed_turn,
        _NOT_FENCED,
    ),
    Guard(
        "finish needs the claim",
        "move_cursors",
        ((_HELD, ""),),
        scenes.finish_without_the_claim,
        _NOT_FENCED,
    ),
    Guard(
        "fail needs the claim",
        "fail",
        ((_HELD, ""),),
        scenes.finish_without_the_claim,
        _NOT_FENCED,
    ),
    Guard(
        "finish heeds where the turn began",
        "move_cursors",
        ((r" AND c\.applied_seq = t\.from_seq - 1", ""),),
        scenes.finish_of_another_stand,
        _NOT_FENCED,
    ),
    Guard(
        "fail heeds the epoch",
        "fail",
        ((rf"{_HELD}\s+AND c\.epoch = fail\.epoch - 1", ""),),
        scenes.late_finish_after_a_failed_turn,
        _NOT_FENCED,
    ),
    Guard(
        "finish locks the key against its callers",
        "finish",
        ((r" FOR UPDATE SKIP LOCKED", ""),),
        scenes.finish_beside_an_open_append,
        _WAITS,
    ),
    Guard(
        "finish waits for no caller",
        "finish",
        ((r" SKIP LOCKED", ""),),
        scenes.finish_beside_an_open_append,
        _WAITS,
    ),
    Guard(
        "finish looks for more commands",
        "finish",
        ((_LOOK, "t.sequence IS NOT NULL"),),
        scenes.append_between_claim_and_finish,
        _NOT_READY,
    ),
    Guard(
        "finish looks after the lock on a new snapshot",
        "finish",
        _ON_ONE_SNAPSHOT,
        scenes.append_between_snapshot_and_lock_of_finish,
        _NOT_READY,
    ),
    Guard(
        "turns are taken at READ COMMITTED",
        "require_read_committed",
        ((r"<> 'read committed'", "= 'no such level'"),),
        scenes.turn_on_one_snapshot,
        "DID NOT RAISE",
    ),
    Guard(
        "apply sets READ COMMITTED",
        "apply",
        ((r"SET TRANSACTION ISOLATION LEVEL READ COMMITTED;", ""),),
        scenes.apply_by_default_at,
        "a turn was taken at isolation level",
    ),
]


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name.replace(" ", "_"))
def test_p1_p4_without_its_guard_the_scene_ends_badly(witness: Database, guard: Guard) -> None:
    replace_in(witness, guard.function, *guard.edits)
    with pytest.raises((AssertionError, pytest.fail.Exception, psycopg.Error)) as caught:
        guard.scene(witness, Oracle(witness))
    shown = f"{type(caught.value).__name__}: {caught.value}"
    assert re.search(guard.sign, shown), f"ended badly for another reason: {shown}"


def test_p1_p4_the_stress_finds_a_finish_that_looks_on_one_snapshot(witness: Database) -> None:
    """P4's stress on the broken finish: the oracle sees keys asleep on their commands."""
    replace_in(witness, "finish", *_ON_ONE_SNAPSHOT)
    oracle, crowd = Oracle(witness), Crowd(witness)
    with crowd.applying(2):
        crowd.call(5, "'orders', 4000, 5000, rollbacks => 0.05, widest => 2")
    assert {what for what, *_ in oracle.violations()} >= {"P4: lost: unapplied and idle"}
