"""The guards of appends and turns, each taken out of the SQL once: its scene has to end badly."""

from __future__ import annotations

import pytest
from support import lease_scenes, scenes
from support.crowd import Crowd
from support.database import Database
from support.guards import (
    CLAIM,
    FAIL,
    HELD,
    LOOK,
    NOT_FENCED,
    NOT_READY,
    NOT_WOKEN,
    ON_ONE_SNAPSHOT,
    WAITS,
    WAKES,
    Guard,
    ends_badly,
)
from support.oracle import Oracle
from support.race import replace_in

#: Long walks: on one server version.
pytestmark = pytest.mark.slow

GUARDS = [
    Guard(
        "append locks the key",
        "append",
        ((r" LIMIT 1 FOR UPDATE;", " LIMIT 1;"),),
        scenes.second_caller_waits,
        "UniqueViolation",
    ),
    Guard(
        "append locks the key of a command that is not plain",
        "_begin_append",
        ((r" LIMIT 1 FOR UPDATE;", " LIMIT 1;"),),
        scenes.second_caller_with_more_to_look_up_waits,
        "UniqueViolation",
    ),
    Guard(
        "append wakes a drained key",
        "append",
        ((WAKES, "false"),),
        scenes.append_to_a_drained_key,
        NOT_READY,
    ),
    Guard(
        "append leaves a key alone that was woken",
        "append",
        ((WAKES, "u.drained"),),
        lease_scenes.append_under_a_lease,
        "P2: two tickets",
    ),
    Guard(
        "append waits for no handler",
        "append",
        ((WAKES, "u.drained"),),
        scenes.callers_of_a_key_whose_turn_has_failed,
        WAITS,
    ),
    Guard(
        "a turn says that the key went idle",
        "_end_turns",
        ((r"t\.applied_seq, t\.drained,", "t.applied_seq, false,"),),
        scenes.append_to_a_drained_key,
        NOT_WOKEN,
    ),
    Guard(
        "an empty turn says that the key went idle",
        "_end_turns",
        ((r" OR t\.drained;", ";"),),
        scenes.append_after_an_empty_turn,
        NOT_WOKEN,
    ),
    Guard(
        "a key that goes idle has no ticket",
        "_end_turns",
        ((r"DELETE FROM inturn\.ticket c.*?;", ""),),
        scenes.append_to_a_drained_key,
        "UniqueViolation.*turn_pkey",
    ),
    Guard(
        "append on a snapshot leaves a hint",
        "_append_on_snapshot",
        ((r"PERFORM inturn\._leave_hint\(topic, key\);", ""),),
        scenes.append_on_a_snapshot_older_than_the_last_turn,
        "P4: lost: unapplied and idle",
    ),
    Guard(
        "a pass looks at hints",
        "_begin_pass",
        ((r"PERFORM inturn\._take_hints[^;]*;", ""),),
        scenes.append_on_a_snapshot_older_than_the_last_turn,
        "assert 2 == 1",
    ),
    Guard(
        "an applier looks at hints before it sleeps",
        "announce_sleep",
        ((r"PERFORM inturn\._take_hints\(topics\);", ""),),
        scenes.append_on_an_old_snapshot_before_appliers_sleep,
        NOT_READY,
    ),
    Guard(
        "a claim by lease looks at hints",
        "_begin_pass",
        ((r"PERFORM inturn\._take_hints[^;]*;", ""),),
        lease_scenes.append_on_an_old_snapshot,
        "nobody looks at the hint",
    ),
    Guard(
        "a hint stays while a caller holds the key",
        "_take_hints",
        (
            (
                r"UPDATE inturn\.wake_hint h SET left_at = clock_timestamp\(\)",
                "DELETE FROM inturn.wake_hint h",
            ),
        ),
        scenes.append_on_an_old_snapshot_beside_an_open_append,
        "P4: lost: unapplied and idle",
    ),
    Guard(
        "a look for a hint waits for no caller",
        "_take_hints",
        ((r"FOR UPDATE SKIP LOCKED(?=;\s+IF FOUND)", "FOR UPDATE"),),
        scenes.append_on_an_old_snapshot_beside_an_open_append,
        WAITS,
    ),
    Guard(
        "a look for a hint keeps callers out",
        "_take_hints",
        ((r" FOR UPDATE SKIP LOCKED(?=;\s+IF FOUND)", ""),),
        scenes.append_beside_a_look_at_its_key,
        "P2: a ticket behind the last turn",
    ),
    Guard(
        "a key that is looked at as its turn ends is awake",
        "_look_at_key",
        ((r"t\.epoch >= was\.epoch\) THEN", "t.epoch = was.epoch) THEN"),),
        scenes.turn_ends_beside_a_look_at_its_key,
        "P2: two tickets",
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
        CLAIM,
        ((r"FOR UPDATE OF t SKIP LOCKED", ""),),
        scenes.claim_beside_a_locked_head,
        r"Turn\(key='x'",
    ),
    Guard(
        "claim skips what is locked",
        CLAIM,
        ((r" SKIP LOCKED", ""),),
        scenes.claim_beside_a_locked_head,
        WAITS,
    ),
    Guard(
        "claim heeds ready_at",
        CLAIM,
        ((r" AND t\.ready_at <= now", ""),),
        scenes.claim_before_its_time,
        r"Turn\(key='x'",
    ),
    Guard(
        "commands are read in order",
        "_batch_commands",
        ((r"ORDER BY l\.seq LIMIT", "ORDER BY l.seq DESC LIMIT"),),
        scenes.order_within_a_turn,
        "P3: applied out of turn",
    ),
    Guard(
        "finish heeds the epoch",
        "_finish",
        ((r" AND c\.epoch = t\.epoch - 1", ""), (HELD, "")),
        scenes.late_finish_after_a_failed_turn,
        NOT_FENCED,
    ),
    Guard(
        "finish needs the claim",
        "_finish",
        ((HELD, ""),),
        scenes.finish_without_the_claim,
        NOT_FENCED,
    ),
    Guard(
        "fail needs the claim",
        FAIL,
        ((HELD, ""),),
        scenes.finish_without_the_claim,
        NOT_FENCED,
    ),
    Guard(
        "finish heeds where the turn began",
        "_finish",
        ((r" AND c\.applied_seq = t\.from_seq - 1", ""),),
        scenes.finish_of_another_stand,
        NOT_FENCED,
    ),
    Guard(
        "fail heeds the epoch",
        FAIL,
        ((rf"{HELD}\s+AND t\.epoch = greatest\(fail\.epoch, 0\) - 1", ""),),
        scenes.late_finish_after_a_failed_turn,
        NOT_FENCED,
    ),
    Guard(
        "finish locks the key against its callers",
        "_finish",
        ((r" FOR UPDATE SKIP LOCKED", ""),),
        scenes.finish_beside_an_open_append,
        NOT_READY,
    ),
    Guard(
        "finish waits for no caller",
        "_finish",
        ((r" SKIP LOCKED", ""),),
        scenes.finish_beside_an_open_append,
        WAITS,
    ),
    Guard(
        "finish looks for more commands",
        "_finish",
        ((LOOK, "t.locked IS NOT NULL"),),
        scenes.append_between_claim_and_finish,
        NOT_READY,
    ),
    Guard(
        "finish looks after the lock on a new snapshot",
        "_finish",
        ON_ONE_SNAPSHOT,
        scenes.append_between_snapshot_and_lock_of_finish,
        NOT_READY,
    ),
    Guard(
        "turns are taken at READ COMMITTED",
        "_require_read_committed",
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
    ends_badly(witness, guard)


def test_p1_p4_the_stress_finds_a_finish_that_looks_on_one_snapshot(witness: Database) -> None:
    """P4's stress on the broken finish: the oracle sees keys idle on their commands."""
    replace_in(witness, "_finish", *ON_ONE_SNAPSHOT)
    oracle, crowd = Oracle(witness), Crowd(witness)
    found: set[object] = set()
    for _ in range(10):  # a tenth is enough as a rule
        with crowd.applying(2):
            crowd.call(5, "'orders', 400, 5000, rollbacks => 0.05, widest => 2")
        found |= {what for what, *_ in oracle.violations()}
        if "P4: lost: unapplied and idle" in found:
            return
    pytest.fail(f"not found: {found}")
