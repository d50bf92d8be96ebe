"""All promises at once: Hypothesis drives callers, appliers, operators and faults against a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import Phase
from support.combinations import sizes
from support.database import Database
from support.model import Machine, prepare
from support.race import replace_in
from support.walks import walk, walk_once

#: Long walks: on one server version.
pytestmark = pytest.mark.slow


@pytest.fixture
def model(witness: Database) -> Database:
    """The database that the model walks on."""
    prepare(witness)
    return witness


# Longer than Hypothesis shrinks: the limit would hide what was found.
@pytest.mark.timeout(600)
@sizes("walks", 15, rest=50)
@pytest.mark.usefixtures("model")
def test_model_any_interleaving_keeps_every_promise(walks: int) -> None:
    walk(Machine, walks, [Phase.generate, Phase.shrink], steps=40)


def _append_to_a_drained_key(model: Machine) -> None:
    model.append_and_commit(0, 0)
    model.pass_over(0, "skip")
    model.append_and_commit(0, 0)


def _append_on_a_snapshot_from_before_the_drain(model: Machine) -> None:
    model.begin_with_commands((0, 1))
    model.drain()
    model.take_a_snapshot("nothing", 0)
    model.append_on_the_snapshot(1)


def _take_less_than_there_is(model: Machine) -> None:
    model.begin_with_commands((0, 4))
    model.drain()


def _skip_one_of_two(model: Machine) -> None:
    model.begin_with_commands((0, 2))
    model.pass_over(1, "skip")
    model.promises_hold()


def _claim(model: Machine) -> None:
    model.begin_with_commands((0, 1))
    model.claim_by_lease(1)
    model.promises_hold()


@pytest.mark.parametrize(
    ("function", "pattern", "without", "steps"),
    [
        (
            "append",
            r"u\.drained AND l\.name IS NULL",
            "false",
            _append_to_a_drained_key,
        ),
        (
            "_append_on_snapshot",
            r"PERFORM inturn\._leave_hint\(topic, key\);",
            "",
            _append_on_a_snapshot_from_before_the_drain,
        ),
        (
            "_finish",
            r"t\.locked IS NOT NULL AND l\.next IS NOT TRUE",
            "t.locked IS NOT NULL",
            _take_less_than_there_is,
        ),
        (
            "_requeue",
            r"SELECT NOT EXISTS \([^;]*?\) INTO missing",
            "SELECT true INTO missing",
            _skip_one_of_two,
        ),
        ("_move_past", r"cursor\.epoch := was\.epoch \+ 1;", "", _skip_one_of_two),
        (
            "_begin_lease",
            r"leased\.ready_at := inturn\._next_ready_at\(leased, until\);",
            "",
            _claim,
        ),
    ],
    ids=[
        "wake_in_append",
        "hint_in_append_on_snapshot",
        "look_in_finish",
        "look_in_requeue",
        "epoch_in_move_past",
        "lease_end_in_begin_lease",
    ],
)
def test_model_finds_what_a_missing_guard_breaks(
    model: Database, function: str, pattern: str, without: str, steps: Callable[[Machine], object]
) -> None:
    walk_once(Machine, steps)
    replace_in(model, function, (pattern, without))
    with pytest.raises(AssertionError):
        walk_once(Machine, steps)
