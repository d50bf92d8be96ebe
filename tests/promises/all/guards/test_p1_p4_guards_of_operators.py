"""The guards of operators' actions, each taken out of the SQL once: its scene has to end badly."""

from __future__ import annotations

import pytest
from support import lease_scenes, operator_scenes
from support.database import Database
from support.guards import (
    CLAIM,
    NOT_READY,
    NOT_WOKEN,
    PAUSED_READY,
    SETTLE_LOOK,
    WAITS,
    Guard,
    ends_badly,
)

#: Long walks: on one server version.
pytestmark = pytest.mark.slow

GUARDS = [
    Guard(
        "settle_key looks for more commands",
        "_requeue",
        (SETTLE_LOOK,),
        operator_scenes.skip_before_more,
        NOT_READY,
    ),
    Guard(
        "settle_key looks after the lock on a new snapshot",
        "_requeue",
        (
            (
                r"AND s\.key <= was\.key(?= AND app|\s+ORDER BY)",
                """AND s.key <= was.key AND NOT EXISTS (
                    SELECT FROM inturn.command_log l
                    WHERE l.topic = s.topic AND l.key = s.key AND l.seq = cursor.applied_seq + 1)""",
            ),
            SETTLE_LOOK,
        ),
        operator_scenes.append_between_snapshot_and_lock_of_skip,
        NOT_READY,
    ),
    Guard(
        "settle_key locks the key against its callers",
        "_requeue",
        ((r" FOR UPDATE SKIP LOCKED", ""),),
        operator_scenes.skip_beside_an_open_append,
        NOT_READY,
    ),
    Guard(
        "settle_key waits for no caller",
        "_requeue",
        ((r" SKIP LOCKED", ""),),
        operator_scenes.skip_beside_an_open_append,
        WAITS,
    ),
    Guard(
        "put_to_sleep says that the key went idle",
        "_make_idle",
        ((r"cursor\.applied_seq, true,", "cursor.applied_seq, false,"),),
        operator_scenes.skip_of_the_last_command,
        NOT_WOKEN,
    ),
    Guard(
        "put_to_sleep says it in the turn that there is",
        "_make_idle",
        ((r"SET drained = true", "SET drained = u.drained"),),
        lease_scenes.append_after_a_release,
        NOT_WOKEN,
    ),
    Guard(
        "put_to_sleep keeps the epoch for good",
        "_make_idle",
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
        ((r"(?<=ORDER BY s\.key DESC LIMIT 1) FOR UPDATE", ""),),
        operator_scenes.pause_of_an_idle_key_beside_its_open_append,
        "UniqueViolation",
    ),
    Guard(
        "an operator locks the ticket of a key that was woken",
        "_lock_cursor",
        ((r"IF NOT FOUND OR EXISTS \(.*?END IF;", ""),),
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
        "append leaves a key idle that is paused for good",
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
        ((PAUSED_READY, "cursor.ready_at := NULL;"),),
        operator_scenes.append_to_a_paused_idle_key,
        "P4: lost: unapplied and idle",
    ),
    Guard(
        "a paused key is not ready",
        "pause",
        ((PAUSED_READY, ""),),
        operator_scenes.pause_of_a_ready_key,
        "paused for good and ready at once",
    ),
    Guard(
        "a key that is paused anew is ready when the pause ends",
        "pause",
        ((PAUSED_READY, "cursor.ready_at := CASE WHEN until > was.ready_at THEN until END;"),),
        operator_scenes.pause_for_good_then_until,
        "lost when its pause ends",
    ),
    Guard(
        "claim leaves a paused topic alone",
        CLAIM,
        ((r"p\.paused_at IS NOT NULL AND", "false AND"),),
        operator_scenes.claim_of_a_paused_topic,
        r"Turn\(key='x'",
    ),
]


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name.replace(" ", "_"))
def test_p1_p4_without_its_guard_a_scene_of_operators_ends_badly(witness: Database, guard: Guard) -> None:
    ends_badly(witness, guard)
