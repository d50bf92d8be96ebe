"""P2 to P4 with operators beside appliers and callers: skips, cancels, pauses in the middle of it all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Event

import psycopg
import pytest
from support import operator_scenes
from support.crowd import Crowd, together
from support.database import Database, until
from support.oracle import Oracle
from support.roles import OWNER

#: One transaction a command: callers of several keys take them in order.
_POISON = """
    DO $$ BEGIN
        FOR n IN 1 .. 200 LOOP
            PERFORM app.append('orders', 'o' || n % 12, 'fail');
            COMMIT;
        END LOOP;
    END $$
"""
SCENES = [
    operator_scenes.skip_before_more,
    operator_scenes.skip_of_the_last_command,
    operator_scenes.skip_beside_an_open_append,
    operator_scenes.append_between_snapshot_and_lock_of_skip,
    operator_scenes.skip_beside_an_applier,
    operator_scenes.skip_out_of_turn,
    operator_scenes.late_finish_after_a_skip,
    operator_scenes.append_to_a_paused_idle_key,
    operator_scenes.append_on_an_old_snapshot_to_a_paused_idle_key,
    operator_scenes.pause_of_a_ready_key,
    operator_scenes.pause_for_good_then_until,
    operator_scenes.claim_of_a_paused_topic,
    operator_scenes.pause_of_an_idle_key_beside_its_open_append,
    operator_scenes.append_beside_the_open_pause_of_an_idle_key,
    operator_scenes.claim_beside_the_pause_of_a_key_that_was_woken,
]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_p2_p4_operators_beside_appliers_and_callers(
    witness: Database, scene: Callable[[Database, Oracle], None]
) -> None:
    scene(witness, Oracle(witness))


def test_p3_prefix_with_operators_in_a_crowd(witness: Database) -> None:
    """Operators skip, cancel, pause, resume and retry at random: the effects of all keys stay in turn."""
    oracle, crowd = Oracle(witness), Crowd(witness)
    witness.execute("UPDATE inturn.topic SET max_attempts = 2, backoff_base = '1 ms', batch_commands = 5")
    over = Event()
    every = {"create", "skip", "cancel-rest", "pause", "resume", "retry"}
    # lock_timeout: an operator may have to wait for a caller that waits for another one's key.
    actions = [
        "SELECT inturn.skip('orders', key, applied_seq + 1, 'crowd')",
        "SELECT inturn.cancel_rest('orders', key, 'crowd')",
        "SELECT inturn.pause('orders', key)",
        "SELECT inturn.pause('orders', key, NULL, clock_timestamp() + '5 ms')",
        "SELECT inturn.resume('orders', key)",
        "SELECT inturn.retry('orders', key)",
    ]

    def operate() -> None:
        with witness.connect(options="-c lock_timeout=50ms", user=OWNER) as connection:
            while not over.is_set():
                for action in actions:
                    with suppress(psycopg.DatabaseError):
                        connection.execute(
                            f"{action} FROM inturn.key_cursor WHERE topic = 'orders' AND key LIKE 'o%'"
                            " ORDER BY random() LIMIT 1"
                        )
                over.wait(0.005)

    def done() -> set[str]:
        return {action for (action,) in witness.execute("SELECT DISTINCT action FROM inturn.operator_action")}

    def call() -> None:
        try:
            for _ in range(10):  # chance may leave an action out
                crowd.run(
                    ["CALL app.call('orders', 150, 12, 'o')"] * 2
                    + ["CALL app.call('orders', 150, 12, 'n')"]
                    + [_POISON]
                )
                if done() == every:
                    return
        finally:
            over.set()

    with oracle.watching(), crowd.applying(3):
        together([operate, operate, call])
        witness.execute(
            # A pause until a time ends by itself, maybe at this moment.
            "SELECT inturn.resume('orders', key) FROM inturn.key_cursor WHERE paused_at IS NOT NULL"
            " AND paused_until IS NULL"
        )
        until(lambda: settle(witness), "no key held")
    assert done() == every
    assert oracle.check_drained("n%") > 200
    assert oracle.check_drained() > 600


def settle(database: Database) -> bool:
    """Skip what keys are held at; return whether none is held or being tried again."""
    database.execute(
        "SELECT inturn.skip('orders', key, applied_seq + 1, 'broken') FROM inturn.key_cursor"
        " WHERE held_at IS NOT NULL"
    )
    return not database.value(
        "SELECT count(*) FROM inturn.key_cursor WHERE ready_at IS NOT NULL OR held_at IS NOT NULL"
    )
