"""The documentation as a site, with the Python reference that is made of docstrings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.place import DOCS

import inturn.applier
import inturn.outbox


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    build: list[str | Path] = [
        sys.executable,
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--keep-going",
        "--quiet",
        DOCS,
        tmp_path,
    ]
    run = subprocess.run(build, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    page = (tmp_path / "reference" / "api.html").read_text()
    assert 'id="inturn.schema.install.upgrade_on"' in page
    # An error that both export is there once.
    for module, names in (
        (inturn.outbox, inturn.outbox.__all__),
        (inturn.applier, {*inturn.applier.__all__} - {*inturn.outbox.__all__}),
    ):
        assert [name for name in names if f'id="{module.__name__}.{name}"' not in page] == []
