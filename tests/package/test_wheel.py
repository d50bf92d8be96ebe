"""The built wheel, installed into an empty environment outside the checkout."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
from support.place import ROOT
from support.wheel import FOLDERS, LATER, run


@pytest.fixture(scope="session")
def files(wheel: Path) -> set[str]:
    """What is in the wheel."""
    return set(zipfile.ZipFile(wheel).namelist())


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
    # The types of others are not ours to look into, which takes most of the time.
    others = "psycopg.*,sqlalchemy.*,alembic.*,click.*,rich.*,pythonjsonlogger.*"
    config = empty / "mypy.ini"
    config.write_text(f"[mypy]\nstrict = true\n[mypy-{others}]\nfollow_imports = skip\n")
    output = run(
        *(sys.executable, "-m", "mypy", "--config-file", config, "--cache-dir=cache"),
        *("--python-executable", empty / "env" / "bin" / "python", snippet),
        cwd=empty,
    )
    revealed = [line.partition("Revealed type is ")[2] for line in output.splitlines()]
    assert revealed[0] == '"list[str]"', output
    assert "inturn.cli.exit_codes.ExitCode.OK" in revealed[1]
    assert revealed[2].endswith('-> list[int | None]"')
    assert revealed[3] == '"str"'
