"""`make bench` works: what it would measure is done once, at a size that says nothing of speed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench.__main__ import Run, prepared
from support.database import Database
from support.server import Server


@pytest.fixture
def bench(server: Server) -> Iterator[Database]:
    database = prepared(server)
    yield database
    database.drop()


@pytest.mark.parametrize(
    ("measure", "rows", "commands"),
    [(Run.append, 2, 32), (Run.one_key, 3, 81), (Run.hot_key, 8, 290)],
    ids=["append", "one-key", "hot-key"],
)
def test_every_row_of_callers_is_measured_by_the_login_that_the_bench_has(
    bench: Database, measure: Callable[[Run], None], rows: int, commands: int
) -> None:
    run = Run(bench, 0, "prepared")
    measure(run)
    assert len(run.rows) == rows
    assert (
        bench.value("SELECT (SELECT count(*) FROM inturn.command_log) + count(*) FROM inturn.intake")
        == commands
    )
    assert all(row["value"] > 0 for row in run.rows)  # type: ignore[operator]


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_everything_of_bench_full_can_be_measured() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.heart", "--quick"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
