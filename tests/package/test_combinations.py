"""Which combinations of parameters `make test` tries: support.combinations."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from support.combinations import chosen, number_of_run
from support.place import ROOT

_FAMILY = "tests/sql/test_list_keys.py::test_a_full_list_reads_no_further"


@pytest.mark.parametrize("run", range(4))
@pytest.mark.parametrize("sizes", [(3,), (4, 2), (2, 4), (41, 2, 2), (7, 4, 2, 2), (3, 3, 2), (2, 2, 2)])
def test_each_value_is_tried_and_few_combinations_are(sizes: tuple[int, ...], run: int) -> None:
    kept = chosen([*itertools.product(*map(range, sizes))], run)
    assert [{*values} for values in zip(*kept, strict=True)] == [{*range(size)} for size in sizes]
    assert len(kept) <= sum(sizes)


def test_the_runs_of_a_make_test_try_others() -> None:
    places = [*itertools.product(range(41), range(2), range(2))]
    tried = [chosen(places, run) for run in range(4)]
    assert {*itertools.chain(*tried)} == {*places}
    runs = [
        {"INTURN_TEST_PG": "18"},
        {"INTURN_TEST_PG": "16"},
        {"INTURN_TEST_PG": "15"},
        {"INTURN_TEST_PG": "18", "INTURN_TEST_POOLER": "transaction"},
    ]
    assert [number_of_run(run) for run in runs] == [0, 1, 2, 3]
    assert number_of_run({}) == number_of_run({"INTURN_TEST_PG": "17"}) == 0


def test_each_value_is_tried_where_not_all_combinations_exist() -> None:
    places = [(0, 0), (0, 1), (1, 2), (2, 0), (3, 2)]
    kept = chosen(places)
    assert kept <= {*places}
    assert [{*values} for values in zip(*kept, strict=True)] == [{0, 1, 2, 3}, {0, 1, 2}]


def _collected(marks: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", marks, _FAMILY],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return {line for line in run.stdout.splitlines() if line.startswith(_FAMILY)}


def test_what_make_test_leaves_out_make_rest_tries() -> None:
    tried, rest = _collected("not rest"), _collected("rest")
    assert not tried & rest
    assert tried | rest == _collected("")
    assert 0 < len(tried) < len(rest)
