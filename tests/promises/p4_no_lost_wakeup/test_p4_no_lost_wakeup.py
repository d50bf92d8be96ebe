"""P4: a committed, unapplied command's key is ready or held, never idle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import scenes
from support.combinations import sizes
from support.crowd import Crowd
from support.database import Database
from support.oracle import Oracle
from support.race import APPEND, append, unblocked


@pytest.fixture
def oracle(witness: Database) -> Oracle:
    return Oracle(witness)


@pytest.mark.parametrize("end", ["commit", "rollback", "kill"])
def test_p4_finish_beside_an_open_append_skips_and_stays_ready(
    witness: Database, oracle: Oracle, end: str
) -> None:
    scenes.finish_beside_an_open_append(witness, oracle, end)


@pytest.mark.parametrize("end", ["commit", "rollback", "kill"])
def test_p4_append_beside_an_open_finish_waits_and_wakes(witness: Database, oracle: Oracle, end: str) -> None:
    scenes.append_beside_a_finish(witness, oracle, end)


def test_p4_append_between_claim_and_finish_keeps_the_key_ready(witness: Database, oracle: Oracle) -> None:
    scenes.append_between_claim_and_finish(witness, oracle)


def test_p4_append_between_snapshot_and_lock_of_finish_keeps_the_key_ready(
    witness: Database, oracle: Oracle
) -> None:
    scenes.append_between_snapshot_and_lock_of_finish(witness, oracle)


def test_p4_append_to_a_drained_key_wakes_it(witness: Database, oracle: Oracle) -> None:
    scenes.append_to_a_drained_key(witness, oracle)


def test_p4_append_after_an_empty_turn_wakes_the_key(witness: Database, oracle: Oracle) -> None:
    scenes.append_after_an_empty_turn(witness, oracle)


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_p4_append_on_a_snapshot_older_than_the_last_turn_wakes_the_key(
    witness: Database, oracle: Oracle, isolation: str
) -> None:
    scenes.append_on_a_snapshot_older_than_the_last_turn(witness, oracle, isolation)


@pytest.mark.parametrize(
    "scene",
    [
        scenes.append_on_an_old_snapshot_before_appliers_sleep,
        scenes.append_on_an_old_snapshot_beside_an_open_append,
        scenes.append_beside_a_look_at_its_key,
        scenes.turn_ends_beside_a_look_at_its_key,
    ],
    ids=lambda scene: scene.__name__,
)
def test_p4_keys_that_callers_with_old_snapshots_could_not_wake(
    witness: Database, oracle: Oracle, scene: Callable[[Database, Oracle], None]
) -> None:
    scene(witness, oracle)


@pytest.mark.parametrize("end", ["rollback", "kill"])
def test_p4_a_caller_that_is_undone_on_a_drained_key_leaves_it_wakeable(
    witness: Database, oracle: Oracle, end: str
) -> None:
    append(witness, "x")
    scenes.drain(witness, oracle)
    caller = witness.session()
    assert append(caller, "x") == 2
    unblocked(witness, witness.session(autocommit=True), "CALL inturn.apply()", [])
    {"rollback": caller.rollback, "kill": caller.kill}[end]()
    oracle.check_drained()
    assert append(witness, "x") == 2
    assert scenes.drain(witness, oracle) == 2


def test_p4_a_caller_that_waited_for_one_that_was_undone_wakes_the_key(
    witness: Database, oracle: Oracle
) -> None:
    append(witness, "x")
    scenes.drain(witness, oracle)
    first, second = witness.session(), witness.session()
    append(first, "x")
    waiting = second.begin(APPEND, ["x"])
    second.wait_blocked()
    first.rollback()
    assert waiting.result() == [(2,)]
    second.commit()
    assert scenes.drain(witness, oracle) == 2


def test_p4_a_savepoint_rolled_back_on_a_drained_key_does_not_put_it_to_sleep(
    witness: Database, oracle: Oracle
) -> None:
    """The wake-up is undone with the savepoint; the next append of the transaction wakes again."""
    append(witness, "x")
    scenes.drain(witness, oracle)
    caller = witness.session()
    caller.execute("SAVEPOINT s")
    append(caller, "x")
    caller.execute("ROLLBACK TO s")
    assert append(caller, "x") == 2
    caller.execute("SAVEPOINT s")
    append(caller, "x")
    caller.execute("ROLLBACK TO s")
    caller.commit()
    assert scenes.drain(witness, oracle) == 2


@pytest.mark.timeout(240)
@sizes("commands", 10_000, rest=50_000)
def test_p4_nothing_is_left_behind_after_so_many_commands(
    witness: Database, oracle: Oracle, commands: int
) -> None:
    """Keys run dry and are woken all the time: the appliers are faster than the callers of any key."""
    crowd = Crowd(witness)
    with oracle.watching(seconds_between=1.0), crowd.applying(2):
        # A transaction that commits has about two of them.
        crowd.call(5, f"'orders', {commands // 9}, 5000, rollbacks => 0.05, widest => 2")
    assert oracle.check_drained() >= commands
    woken = witness.value("SELECT count(*) FROM inturn.turn")
    assert woken > commands / 10, "the keys hardly ever ran dry: this run proves little"
