"""The built wheel, and an environment that it is installed in: made once a run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from support.place import ROOT
from support.wheel import FOLDERS, LATER, made_once, run


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools leaves its work in the folder it builds from."""
    with made_once(tmp_path_factory, "wheel") as (output, is_new):
        if is_new:
            source = tmp_path_factory.mktemp("source")
            for folder in FOLDERS:
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
            for file in ("pyproject.toml", "README.md", "LICENSE"):
                shutil.copy(ROOT / file, source)
            (source / LATER).write_text("-- nothing\n")
            run(sys.executable, "-m", "build", "--wheel", "--outdir", output, source, cwd=output)
    (built,) = output.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def empty(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment that holds the wheel and what it asks for, and nothing else."""
    with made_once(tmp_path_factory, "empty") as (place, is_new):
        if is_new:
            # Neither a pip of its own nor compiled files: both cost seconds, and no test needs them.
            run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=place)
            pip = (sys.executable, "-m", "pip", "--python", place / "env" / "bin" / "python")
            run(*pip, "install", "--quiet", "--no-compile", f"{wheel}[binary]", cwd=place)
    return place
