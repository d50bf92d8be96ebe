"""The guards behind P1 to P4, each taken out of the SQL once: its scene has to end badly.

A scene that ends well without the guard that it is there for would prove nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
import pytest
from support import gap_scenes, lease_scenes, operator_scenes, scenes
from support.crowd import Crowd
from support.database import Database
from support.oracle import Oracle
from support.race import replace_in

#: Long walks: on one server version.
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Guard:
    """What keeps a promise, the function and the edits that take it out, its scene, and what shows there."""

    name: str
    function: str
    edits: tuple[tuple[str, str], ...]
    scene: Callable[[Database, Oracle], None]
    sign: str


#: How finish finds out whether a key that it holds has more commands.
_LOOK = r"t\.locked IS NOT NULL AND l\.next IS NOT TRUE"

#: The same of _settle_key.
_SETTLE_LOOK = (r"SELECT NOT EXISTS \([^;]*?\) INTO missing", "SELECT true INTO missing")

#: The check moves into the statement that locks, and so on that statement's snapshot.
_ON_ONE_SNAPSHOT = (
    (
        r"WHERE s\.topic = _finish\.topic AND s\.key = t\.key(?= AND app|\s+FOR UPDATE)",
        """WHERE s.topic = _finish.topic AND s.key = t.key AND NOT EXISTS (
            SELECT FROM inturn.command_log l JOIN unnest(keys, applied_seqs) a (key, seq) ON a.key = l.key
            WHERE l.topic = _finish.topic AND l.key = s.key AND l.seq = a.seq + 1)""",
    ),
    (_LOOK, "t.locked IS NOT NULL"),
)
#: Within the claim's own transaction nobody else can have had a turn: the epoch is the second fence.
_HELD = r"\s+AND [ct]\.xmax = pg_current_xact_id\(\)::xid"
#: Which append wakes the key.
_WAKES = r"IF last_turn\.drained AND new_seq = last_turn\.applied_seq \+ 1 THEN"
#: When a paused key is ready.
_PAUSED_READY = r"cursor\.ready_at := inturn\._next_ready_at\(cursor, NULL\);"
_HEEDS_LEASE = (r"c\.paused_until, c\.lease_until\) END", "c.paused_until) END")
_CLAIM = "claim(text, timestamptz, integer)"
_FAIL = "fail(text, text, bigint, bigint, bigint, text, text, text, interval)"
_WAITS = "waits for a lock"
_NOT_READY = re.escape("assert [] == ['x']")
_NOT_WOKEN = "P4: the next append will not wake it"
_NOT_FENCED = "DID NOT RAISE|'23505' == 'IT030'"

GUARDS = [
    Guard(
        "append locks the key",
        "append",
        ((r" FOR UPDATE\) END", ") END"),),
        scenes.second_caller_waits,
        "UniqueViolation",
    ),
    Guard(
        "append wakes a drained key",
        "append",
        ((_WAKES, "IF false THEN"),),
        scenes.append_to_a_drained_key,
        _NOT_READY,
    ),
    Guard(
        "append leaves a key alone that was woken",
        "append",
        ((_WAKES, "IF last_turn.drained THEN"),),
        lease_scenes.append_under_a_lease,
        "P2: two tickets",
    ),
    Guard(
        "append waits for no handler",
        "append",
        ((_WAKES, "IF last_turn.drained THEN"),),
        scenes.callers_of_a_key_whose_turn_has_failed,
        _WAITS,
    ),
    Guard(
        "a turn says that the key went idle",
        "_end_turns",
        ((r"t\.applied_seq, t\.drained,", "t.applied_seq, false,"),),
        scenes.append_to_a_drained_key,
        _NOT_WOKEN,
    ),
    Guard(
        "an empty turn says that the key went idle",
        "_end_turns",
        ((r" OR t\.drained;", ";"),),
        scenes.append_after_an_empty_turn,
        _NOT_WOKEN,
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
        _NOT_READY,
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
        _WAITS,
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
        _CLAIM,
        ((r"FOR UPDATE OF t SKIP LOCKED", ""),),
        scenes.claim_beside_a_locked_head,
        r"Turn\(key='x'",
    ),
    Guard(
        "claim skips what is locked",
        _CLAIM,
        ((r" SKIP LOCKED", ""),),
        scenes.claim_beside_a_locked_head,
        _WAITS,
    ),
    Guard(
        "claim heeds ready_at",
        _CLAIM,
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
        ((r" AND c\.epoch = t\.epoch - 1", ""), (_HELD, "")),
        scenes.late_finish_after_a_failed_turn,
        _NOT_FENCED,
    ),
    Guard(
        "finish needs the claim",
        "_finish",
        ((_HELD, ""),),
        scenes.finish_without_the_claim,
        _NOT_FENCED,
    ),
    Guard(
        "fail needs the claim",
        _FAIL,
        ((_HELD, ""),),
        scenes.finish_without_the_claim,
        _NOT_FENCED,
    ),
    Guard(
        "finish heeds where the turn began",
        "_finish",
        ((r" AND c\.applied_seq = t\.from_seq - 1", ""),),
        scenes.finish_of_another_stand,
        _NOT_FENCED,
    ),
    Guard(
        "fail heeds the epoch",
        _FAIL,
        ((rf"{_HELD}\s+AND t\.epoch = greatest\(fail\.epoch, 0\) - 1", ""),),
        scenes.late_finish_after_a_failed_turn,
        _NOT_FENCED,
    ),
    Guard(
        "finish locks the key against its callers",
        "_finish",
        ((r" FOR UPDATE SKIP LOCKED", ""),),
        scenes.finish_beside_an_open_append,
        _NOT_READY,
    ),
    Guard(
        "finish waits for no caller",
        "_finish",
        ((r" SKIP LOCKED", ""),),
        scenes.finish_beside_an_open_append,
        _WAITS,
    ),
    Guard(
        "finish looks for more commands",
        "_finish",
        ((_LOOK, "t.locked IS NOT NULL"),),
        scenes.append_between_claim_and_finish,
        _NOT_READY,
    ),
    Guard(
        "finish looks after the lock on a new snapshot",
        "_finish",
        _ON_ONE_SNAPSHOT,
        scenes.append_between_snapshot_and_lock_of_finish,
        _NOT_READY,
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
    # The operators'.
    Guard(
        "settle_key looks for more commands",
        "_settle_key",
        (_SETTLE_LOOK,),
        operator_scenes.skip_before_more,
        _NOT_READY,
    ),
    Guard(
        "settle_key looks after the lock on a new snapshot",
        "_settle_key",
        (
            (
                r"AND s\.key = was\.key(?= AND app|\s+FOR UPDATE)",
                """AND s.key = was.key AND NOT EXISTS (
                    SELECT FROM inturn.command_log l
                    WHERE l.topic = s.topic AND l.key = s.key AND l.seq = cursor.applied_seq + 1)""",
            ),
            _SETTLE_LOOK,
        ),
        operator_scenes.append_between_snapshot_and_lock_of_skip,
        _NOT_READY,
    ),
    Guard(
        "settle_key locks the key against its callers",
        "_settle_key",
        ((r" FOR UPDATE SKIP LOCKED", ""),),
        operator_scenes.skip_beside_an_open_append,
        _NOT_READY,
    ),
    Guard(
        "settle_key waits for no caller",
        "_settle_key",
        ((r" SKIP LOCKED", ""),),
        operator_scenes.skip_beside_an_open_append,
        _WAITS,
    ),
    Guard(
        "put_to_sleep says that the key went idle",
        "_put_to_sleep",
        ((r"cursor\.applied_seq, true,", "cursor.applied_seq, false,"),),
        operator_scenes.skip_of_the_last_command,
        _NOT_WOKEN,
    ),
    Guard(
        "put_to_sleep says it in the turn that there is",
        "_put_to_sleep",
        ((r"SET drained = true", "SET drained = u.drained"),),
        lease_scenes.append_after_a_release,
        _NOT_WOKEN,
    ),
    Guard(
        "put_to_sleep keeps the epoch for good",
        "_put_to_sleep",
        (
            (
                r"cursor\.key, cursor\.epoch,",
                "cursor.key, (SELECT max(u.epoch) FROM inturn.turn u WHERE u.key = cursor.key),",
            ),
        ),
        lease_scenes.late_after_the_key_went_idle_without_a_turn,
        "UniqueViolation.*lease_pkey",
    ),
    Guard(
        "an operator waits for the applier at work",
        "_lock_cursor",
        ((r"(?<=t\.epoch >= cursor\.epoch) FOR UPDATE", ""),),
        operator_scenes.skip_beside_an_applier,
        "'23505' == 'IT041'",
    ),
    Guard(
        "an operator on an idle key waits for its callers",
        "_lock_cursor",
        ((r"(?<=s\.key = cursor\.key) FOR UPDATE", ""),),
        operator_scenes.pause_of_an_idle_key_beside_its_open_append,
        "UniqueViolation",
    ),
    Guard(
        "an operator locks the ticket of a key that was woken",
        "_lock_cursor",
        ((r"IF EXISTS \(.*?END IF;", ""),),
        operator_scenes.claim_beside_the_pause_of_a_key_that_was_woken,
        "P2: two tickets",
    ),
    Guard(
        "an operator's move has an epoch of its own",
        "_move_past",
        ((r"cursor\.epoch := was\.epoch \+ 1;", ""),),
        operator_scenes.late_finish_after_a_skip,
        "the epoch of another turn",
    ),
    Guard(
        "only the next command is skipped",
        "skip",
        ((r"IF seq IS DISTINCT FROM was\.applied_seq \+ 1", "IF false"),),
        operator_scenes.skip_out_of_turn,
        "DID NOT RAISE",
    ),
    Guard(
        "append leaves a key asleep that is paused for good",
        "_wake_key",
        (
            (
                r"ON CONFLICT DO NOTHING",
                "ON CONFLICT ON CONSTRAINT ticket_pkey DO UPDATE SET ready_at = EXCLUDED.ready_at",
            ),
        ),
        operator_scenes.append_to_a_paused_idle_key,
        "paused for good and ready at once",
    ),
    Guard(
        "append goes on beside the ticket of a paused idle key",
        "_wake_key",
        ((r"ON CONFLICT DO NOTHING", ""),),
        operator_scenes.append_to_a_paused_idle_key,
        "UniqueViolation",
    ),
    Guard(
        "a paused idle key is ready for the end of its pause",
        "pause",
        ((_PAUSED_READY, "cursor.ready_at := NULL;"),),
        operator_scenes.append_to_a_paused_idle_key,
        "P4: lost: unapplied and idle",
    ),
    Guard(
        "a paused key is not ready",
        "pause",
        ((_PAUSED_READY, ""),),
        operator_scenes.pause_of_a_ready_key,
        "paused for good and ready at once",
    ),
    Guard(
        "a key that is paused anew is ready when the pause ends",
        "pause",
        ((_PAUSED_READY, "cursor.ready_at := CASE WHEN until > was.ready_at THEN until END;"),),
        operator_scenes.pause_for_good_then_until,
        "lost when its pause ends",
    ),
    Guard(
        "claim leaves a paused topic alone",
        _CLAIM,
        ((r"p\.paused_at IS NOT NULL AND", "false AND"),),
        operator_scenes.claim_of_a_paused_topic,
        r"Turn\(key='x'",
    ),
    # Leases.
    Guard(
        "a lease counts under its epoch alone",
        "_hold_lease",
        ((r" AND t\.epoch = _hold_lease\.epoch", ""),),
        lease_scenes.late_after_another_claim,
        _NOT_FENCED,
    ),
    Guard(
        "a lease that was ended does not count",
        "_hold_lease",
        ((r" AND c\.claimed_by IS NOT NULL", ""),),
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
        (_HEEDS_LEASE,),
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
        (_HEEDS_LEASE,),
        lease_scenes.resume_under_a_lease,
        "P2: ready under a lease",
    ),
    Guard(
        "a key does not go idle under a lease",
        "_settle_key",
        ((r" AND \(cursor\.lease_until > clock_timestamp\(\)\) IS NOT TRUE", ""),),
        lease_scenes.resume_under_a_lease_that_is_done,
        r"Lease\(key='x'",
    ),
    Guard(
        "an operator who waits for a lease holds no lock",
        "_lock_cursor",
        ((r"RAISE EXCEPTION USING ERRCODE = 'IT042';", "PERFORM pg_sleep(0.02);"),),
        lease_scenes.advance_beside_a_waiting_operator,
        _WAITS,
    ),
    Guard(
        "an amended command is not the one of an old lease",
        "amend",
        ((r"IF was_cursor\.claimed_by IS NOT NULL THEN.*?END IF;", ""),),
        lease_scenes.late_after_an_amend,
        _NOT_FENCED,
    ),
    # Numbering given.
    Guard(
        "append_given locks the key",
        "_append_given",
        ((r"\s+FOR UPDATE;", ";"),),
        gap_scenes.finish_beside_the_open_append_of_the_missing,
        _NOT_READY,
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
        _NOT_READY,
    ),
    Guard(
        "append_given wakes an idle key",
        "_look_at_key",
        ((r"PERFORM inturn\._wake_key\([^;]*;", "NULL;"),),
        gap_scenes.the_next_one_comes,
        _NOT_READY,
    ),
    Guard(
        "append_given waits for no handler",
        "_look_at_key",
        ((r" SKIP LOCKED", ""),),
        gap_scenes.the_missing_one_beside_a_turn_that_looks_for_it,
        _WAITS,
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
        _WAITS,
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
        _WAITS,
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
    replace_in(witness, "_finish", *_ON_ONE_SNAPSHOT)
    oracle, crowd = Oracle(witness), Crowd(witness)
    with crowd.applying(2):
        crowd.call(5, "'orders', 4000, 5000, rollbacks => 0.05, widest => 2")
    assert {what for what, *_ in oracle.violations()} >= {"P4: lost: unapplied and idle"}
