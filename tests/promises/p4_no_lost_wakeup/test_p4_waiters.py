"""Who waits for a key is woken when it moves or is held; nobody pays for those who wait for others."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from support import wait_scenes
from support.database import Database, until
from support.plans import buffers, explain
from support.race import Turn, append, replace_in
from support.roles import CALLER
from support.wait_scenes import Ear, Waiter

from inturn.outbox import Waited, wait

Scene = Callable[[Database], None]

SCENES: list[Scene] = [
    wait_scenes.announce_between_finish_and_commit,
    wait_scenes.announce_between_claim_and_finish,
    wait_scenes.held,
    wait_scenes.advanced,
    wait_scenes.alone,
    wait_scenes.skipped,
]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_p4_no_wake_up_of_a_waiter_is_lost(witness: Database, scene: Scene) -> None:
    scene(witness)


@pytest.mark.parametrize(
    ("function", "pattern", "new", "scene", "sign"),
    [
        (
            "_is_in_hand",
            r"RETURN NOT pg_visible_in_snapshot.*?;",
            "RETURN false;",
            wait_scenes.announce_between_finish_and_commit,
            "nobody wakes it",
        ),
        (
            "_finish",
            r"IF waited IS NOT NULL THEN",
            "IF false THEN",
            wait_scenes.announce_between_claim_and_finish,
            "not notified",
        ),
        (
            "_save_key",
            r" OR cursor\.held_at IS NOT NULL AND was\.held_at IS NULL",
            "",
            wait_scenes.held,
            "not notified",
        ),
        (
            "_save_key",
            r"cursor\.applied_seq > was\.applied_seq OR",
            "",
            wait_scenes.skipped,
            "not notified",
        ),
        ("advance", r"IF seq > was\.applied_seq AND", "IF false AND", wait_scenes.advanced, "not notified"),
        (
            "_make_idle",
            r"IF cursor\.applied_seq > was\.applied_seq THEN",
            "IF false THEN",
            wait_scenes.alone,
            "not notified",
        ),
    ],
)
def test_p4_without_its_guard_a_wake_up_is_lost(
    witness: Database, function: str, pattern: str, new: str, scene: Scene, sign: str
) -> None:
    replace_in(witness, function, (pattern, new))
    with pytest.raises(AssertionError, match=sign):
        scene(witness)


def test_p4_a_wait_that_began_beside_a_finish_ends_with_its_commit(witness: Database) -> None:
    append(witness, "a")
    applier = witness.session()
    (turn,) = Turn.claim(witness, applier)
    turn.effects(applier, 1)
    applier.execute(*turn.finish(1))
    found: list[Waited] = []
    connection = witness.connect(user=CALLER)
    thread = threading.Thread(target=lambda: found.append(wait(connection, "orders", "a", 1, timeout=None)))
    thread.start()
    until(lambda: witness.value("SELECT count(*) FROM inturn.waiter"), "the wait announced")
    applier.commit()
    thread.join(30)
    assert found == [Waited(1, False)]


def test_p4_a_wait_for_a_key_in_nobody_s_hand_sleeps_until_it_is_notified(witness: Database) -> None:
    append(witness, "a")
    waiter = Waiter(witness, "a", 1)
    assert waiter.go_to_sleep().seconds > 5
    dead = witness.session()
    assert Turn.claim(witness, dead)
    dead.kill()
    assert Waiter(witness, "a", 1).go_to_sleep().seconds > 5, "a dead applier has nothing in hand"


def test_p4_a_turn_that_moves_nothing_notifies_nobody(witness: Database) -> None:
    append(witness, "a")
    ear = Ear(witness, "a")
    applier = witness.session()
    (turn,) = Turn.claim(witness, applier)
    applier.execute(*turn.fail(1))
    applier.commit()
    append(witness, "a")
    assert ear.heard() == 0
    quiet = witness.session()
    quiet.execute("SET inturn.notify = off")
    witness.execute("UPDATE inturn.ticket SET ready_at = now()")
    (turn,) = Turn.claim(witness, quiet)
    turn.effects(quiet, 2)
    quiet.execute(*turn.finish(2))
    quiet.commit()
    assert ear.heard() == 0


def test_p5_a_turn_reads_no_more_beside_a_thousand_waiters_for_other_keys(witness: Database) -> None:
    """Nor beside 100,000 announcements that are over, which a held snapshot keeps."""
    holder = witness.session()
    holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    holder.execute("SELECT 1")
    keys = [f"key-{number}" for number in range(20)]
    for key in keys:
        append(witness, key)
    alone = _finish(witness)
    witness.execute("""
        INSERT INTO inturn.waiter (topic, key, until)
        SELECT 'orders', 'key-' || n % 20, now() - interval '1 minute' FROM generate_series(1, 100000) n
    """)
    witness.execute("DELETE FROM inturn.waiter")
    witness.execute(
        "SELECT count(inturn.announce_wait('orders', 'other-' || n)) FROM generate_series(1, 1000) n"
    )
    assert witness.value("SELECT count(*) FROM inturn.waiter") == 1000
    # Three blocks of an index a key, and as many for the topic.
    assert _finish(witness) <= alone + 4 * (len(keys) + 1)


def _finish(database: Database) -> int:
    """Return how many blocks it reads to end the turns of all ready keys; it is undone."""
    applier = database.session()
    for _ in range(2):  # the first one plans
        claimed = applier.execute("SELECT key, epoch FROM inturn.claim('orders', max_keys => 100)")
        plan = explain(
            applier.connection,
            "SELECT inturn.finish('orders', %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], 'me')",
            [
                [key for key, _ in claimed],
                [epoch for _, epoch in claimed],
                [1] * len(claimed),
                [1] * len(claimed),
            ],
        )
        applier.rollback()
    assert len(claimed) == 20
    return buffers(plan)
