"""Walks over a model on a real database: its rules in any order by Hypothesis, or in one order by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

M = TypeVar("M", bound=RuleBasedStateMachine)


def walk_once(machine: type[M], steps: Callable[[M], object]) -> None:
    """Walk one walk, for a test that has to find something: what random walks meet differs from run to run.

    Args:
        machine: the rules, and what has to hold at the end of a walk.
        steps: the walk. What has to hold in its middle it calls itself, as a failure of Hypothesis prints it.
    """
    state = machine()
    try:
        steps(state)
    finally:
        state.teardown()


def walk(
    machine: type[RuleBasedStateMachine],
    examples: int,
    phases: Sequence[Phase],
    *,
    steps: int = 30,
) -> None:
    """Walk at random, and fail where the machine does.

    Args:
        machine: the rules, and what has to hold.
        examples: the most walks.
        phases: of Hypothesis.
        steps: the most rules in a walk.
    """
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            phases=phases,
            deadline=None,
            database=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
