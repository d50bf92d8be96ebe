"""Walks of Hypothesis over a model: rules in any order, on a real database."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def walk(
    machine: type[RuleBasedStateMachine],
    examples: int,
    phases: Sequence[Phase],
    *,
    steps: int = 30,
    same: bool = False,
) -> None:
    """Walk at random, and fail where the machine does.

    Args:
        machine: the rules, and what has to hold.
        examples: the most walks.
        phases: of Hypothesis.
        steps: the most rules in a walk.
        same: the same walks in every run, for a test that has to find something.
    """
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            phases=phases,
            deadline=None,
            database=None,
            derandomize=same,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
