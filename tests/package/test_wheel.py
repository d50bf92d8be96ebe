"""The built wheel, installed into an empty environment outside the checkout."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.place import ROOT

FOLDERS = ("schema", "outbox", "applier", "cli")
#: What a later revision will freeze, beside its module.
LATER = "schema/revisions/versions/9999_later.sql"


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program without the environment's Python settings, and return its output."""
    inherited = {name: value for name, value in os.environ.items() if "PYTHON" not in name}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**inherited, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def made_once(factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """Give a folder that the workers of a run share, and whether it is to be made: the others wait."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_new = not folder.exists()
        folder.mkdir(exist_ok=True)
        yield folder, is_new


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
def files(wheel: Path) -> set[str]:
    """What is in the wheel."""
    return set(zipfile.ZipFile(wheel).namelist())


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


def test_its_only_top_level_name_is_inturn(files: set[str]) -> None:
    names = {name.partition("/")[0] for name in files}
    assert {name for name in names if not name.endswith(".dist-info")} == {"inturn"}


def test_it_holds_every_module_and_every_sql_file_and_nothing_else(files: set[str]) -> None:
    there = {
        f"inturn/{path.relative_to(ROOT)}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in files if name.startswith("inturn/")} == {*there, f"inturn/{LATER}"}
    assert "inturn/schema/sql/manifest" in there
    assert "inturn/schema/sql/append/append.sql" in there
    assert "inturn/schema/revisions/versions/0001_core.py" in there
    assert {f"inturn/{folder}/py.typed" for folder in FOLDERS} <= there


def test_it_carries_the_licence(files: set[str]) -> None:
    assert [name for name in files if name.endswith("/LICENSE")]


def test_the_command_line_runs_outside_the_checkout(empty: Path) -> None:
    inturn = empty / "env" / "bin" / "inturn"
    assert "upgrade" in run(inturn, "--help", cwd=empty)
    assert run(inturn, "--version", cwd=empty).strip()


def test_what_is_installed_can_install_the_schema(empty: Path) -> None:
    script = """
from inturn.schema import source
from inturn.schema.install import upgrade_script
assert "CREATE FUNCTION inturn.append(" in upgrade_script()
assert "CREATE FUNCTION inturn.append(" in source.script()
print(source.__file__)
"""
    place = run(empty / "env" / "bin" / "python", "-W", "error", "-c", script, cwd=empty)
    assert place.startswith(str(empty))


@pytest.mark.parametrize(
    "module", ["inturn.schema.install", "inturn.outbox", "inturn.applier", "inturn.cli.main"]
)
def test_each_package_imports_with_the_declared_dependencies_alone(empty: Path, module: str) -> None:
    run(empty / "env" / "bin" / "python", "-W", "error", "-c", f"import {module}", cwd=empty)


def test_mypy_takes_its_types(empty: Path) -> None:
    snippet = empty / "snippet.py"
    snippet.write_text("""
from inturn.applier import Applier
from inturn.cli.exit_codes import ExitCode
from inturn.outbox import append_many
from inturn.schema import HEAD
reveal_type(Applier().topics)
reveal_type(ExitCode.OK)
reveal_type(append_many)
reveal_type(HEAD)
""")
    output = run(
        *(sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=cache"),
        *("--python-executable", empty / "env" / "bin" / "python", snippet),
        cwd=empty,
    )
    revealed = [line.partition("Revealed type is ")[2] for line in output.splitlines()]
    assert revealed[0] == '"list[str]"', output
    assert "inturn.cli.exit_codes.ExitCode.OK" in revealed[1]
    assert revealed[2].endswith('-> list[int | None]"')
    assert revealed[3] == '"str"'
