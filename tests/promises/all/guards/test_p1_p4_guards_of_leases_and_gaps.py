"""The guards of leases and given numbers, each taken out of the SQL once: its scene has to end badly."""

from __future__ import annotations

import pytest
from support import gap_scenes, lease_scenes
from support.database import Database
from support.guards import (
    HEEDS_LEASE,
    NOT_FENCED,
    NOT_READY,
    WAITS,
    Guard,
    ends_badly,
)

#: Long walks: on one server version.
pytestmark = pytest.mark.slow

GUARDS = [
    # Leases.
    Guard(
        "a lease counts under its epoch alone",
        "_hold_lease",
        ((r" AND t\.epoch = _hold_lease\.epoch", ""),),
        lease_scenes.late_after_another_claim,
        NOT_FENCED,
    ),
    Guard(
        "a lease that was ended does not count",
        "_hold_lease",
        ((r"\s+WHERE c\.claimed_by IS NOT NULL", ""),),
        lease_scenes.late_after_its_release,
        "'23502' == 'IT030'",
    ),
    Guard(
        "a claim by lease takes the next epoch",
        "_begin_lease",
        ((r"leased\.epoch := _begin_lease\.epoch;", ""),),
        lease_scenes.late_after_another_claim,
        "the claim brings no command",
    ),
    Guard(
        "a lease keeps the key from the others",
        "_begin_lease",
        ((r"leased\.ready_at := inturn\._next_ready_at\(leased, until\);", ""),),
        lease_scenes.late_after_another_claim,
        "P2: ready under a lease",
    ),
    Guard(
        "an advance is of the next command",
        "advance",
        ((r"IF seq IS DISTINCT FROM was\.applied_seq AND \(", "IF false AND ("),),
        lease_scenes.advance_out_of_turn,
        "DID NOT RAISE|CheckViolation|NotNullViolation",
    ),
    Guard(
        "a repeated advance is no success of the next command",
        "advance",
        (
            (
                r"(IF seq > was\.applied_seq THEN)\s+cursor\.attempts := 0;",
                "cursor.attempts := 0; IF seq > was.applied_seq THEN",
            ),
        ),
        lease_scenes.repeated_advance_after_a_failure,
        "failed for the first time again",
    ),
    Guard(
        "a lease that fails keeps what it has applied",
        "_record_failure",
        ((r"ON CONFLICT ON CONSTRAINT turn_pkey DO UPDATE SET.*?;", ";"),),
        lease_scenes.fail_after_an_advance,
        "UniqueViolation",
    ),
    Guard(
        "a turn ends the lease that it takes over",
        "_clear_marks",
        ((r"DELETE FROM inturn\.key_mark m.*?;", ""),),
        lease_scenes.turn_after_a_lease_that_ran_out,
        "P3: a mark that no ticket knows of",
    ),
    Guard(
        "a pause leaves the key to its lease",
        "_next_ready_at",
        (HEEDS_LEASE,),
        lease_scenes.pause_for_a_moment_under_a_lease,
        "P2: ready under a lease",
    ),
    Guard(
        "a renewal under a pause leaves the key to its lease",
        "renew",
        ((r"cursor\.ready_at := inturn\._next_ready_at\(cursor, cursor\.lease_until\);", ""),),
        lease_scenes.renew_under_a_pause,
        "P2: ready under a lease",
    ),
    Guard(
        "a resumed key is its lease's",
        "_next_ready_at",
        (HEEDS_LEASE,),
        lease_scenes.resume_under_a_lease,
        "P2: ready under a lease",
    ),
    Guard(
        "a key does not go idle under a lease",
        "_requeue",
        ((r" AND \(cursor\.lease_until > clock_timestamp\(\)\) IS NOT TRUE", ""),),
        lease_scenes.resume_under_a_lease_that_is_done,
        r"Lease\(key='x'",
    ),
    Guard(
        "an operator who waits for a lease holds no lock",
        "_lock_cursor",
        (
            (r"IF NOT beside_lease AND .*?END IF;", ""),
            (r"(?<=IS NOT TRUE;)\s+RAISE EXCEPTION USING ERRCODE = 'IT042';", "PERFORM pg_sleep(0.02);"),
        ),
        lease_scenes.advance_beside_a_waiting_operator,
        WAITS,
    ),
    Guard(
        "an amended command is not the one of an old lease",
        "amend",
        ((r"IF was_cursor\.claimed_by IS NOT NULL THEN.*?END IF;", ""),),
        lease_scenes.late_after_an_amend,
        NOT_FENCED,
    ),
    # Numbering given.
    Guard(
        "append_given locks the key",
        "_append_given",
        ((r"\s+FOR UPDATE;", ";"),),
        gap_scenes.finish_beside_the_open_append_of_the_missing,
        NOT_READY,
    ),
    Guard(
        "append_given looks at the key",
        "_append_given",
        ((r"looked := inturn\._look_at_key\(topic, key\);", "looked := true;"),),
        gap_scenes.the_missing_one_comes,
        "P4: a gap that nobody knows of",
    ),
    Guard(
        "append_given wakes the key that waits for it",
        "_look_at_key",
        ((r"cursor\.ready_at := inturn\._next_ready_at\(cursor, clock_timestamp\(\)\);", ""),),
        gap_scenes.the_missing_one_comes,
        NOT_READY,
    ),
    Guard(
        "append_given wakes an idle key",
        "_look_at_key",
        ((r"PERFORM inturn\._wake_key\([^;]*;", "NULL;"),),
        gap_scenes.the_next_one_comes,
        NOT_READY,
    ),
    Guard(
        "append_given waits for no handler",
        "_look_at_key",
        ((r" SKIP LOCKED", ""),),
        gap_scenes.the_missing_one_beside_a_turn_that_looks_for_it,
        WAITS,
    ),
    Guard(
        "append_given on a snapshot leaves a hint",
        "_append_given",
        ((r"PERFORM inturn\._leave_hint\(topic, key\);", ""),),
        gap_scenes.append_on_an_old_snapshot,
        "P4: lost: unapplied and idle",
    ),
    Guard(
        "append_given on a snapshot takes no number that was passed over",
        "_append_given",
        ((r"PERFORM inturn\._refuse_passed[^;]*;", "NULL;"),),
        gap_scenes.late_append_on_an_old_snapshot,
        "DID NOT RAISE",
    ),
    Guard(
        "append_given takes no number that was passed over",
        "_append_given",
        ((r"seq <= applied OR", "false OR"),),
        gap_scenes.late_append_after_fill_gap,
        "DID NOT RAISE",
    ),
    Guard(
        "a lease ends at a gap",
        "_next_commands",
        ((r"WHERE \(c\.l\)\.seq = _next_commands\.applied_seq \+ c\.place", ""),),
        gap_scenes.claims_before_a_gap,
        r"\(1, 3\)",
    ),
    Guard(
        "a SQL target is called up to a gap",
        "_next_commands",
        ((r"WHERE \(c\.l\)\.seq = _next_commands\.applied_seq \+ c\.place", ""),),
        gap_scenes.turns_before_a_gap,
        "has not all of the commands 1 to 4",  # finish refuses what the target has done
    ),
    Guard(
        "finish finds the gap",
        "_finish",
        ((r"t\.numbering = 'given'", "false"),),
        gap_scenes.turns_before_a_gap,
        "P4: a gap that nobody knows of",
    ),
    Guard(
        "a gap is looked for under the lock of the ticket",
        "_look_at_key",
        ((r"(?<=t\.epoch >= was\.epoch) FOR UPDATE SKIP LOCKED", ""),),
        gap_scenes.append_beside_cancel_rest,
        WAITS,
    ),
    Guard(
        "a paused key is not held for its gap",
        "_find_gap",
        ((r"IF until <= clock_timestamp\(\) AND NOT paused THEN", "IF until <= clock_timestamp() THEN"),),
        gap_scenes.gap_times_out_under_a_pause,
        "P3: held and paused at once",
    ),
    Guard(
        "fill_gap keeps callers out",
        "fill_gap",
        ((r"PERFORM inturn\._lock_callers\(topic, key\);", ""),),
        gap_scenes.fill_gap_beside_the_append_of_the_missing,
        "did not wait for the caller",
    ),
    Guard(
        "fill_gap keeps no callers waiting for an applier",
        "fill_gap",
        ((r"was := inturn", "PERFORM inturn._lock_callers(topic, key); was := inturn"),),
        gap_scenes.fill_gap_beside_an_applier,
        WAITS,
    ),
]


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name.replace(" ", "_"))
def test_p1_p4_without_its_guard_a_scene_of_leases_or_gaps_ends_badly(
    witness: Database, guard: Guard
) -> None:
    ends_badly(witness, guard)
