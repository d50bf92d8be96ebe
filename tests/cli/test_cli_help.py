"""The command line's help and what it prints, without a database."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import psycopg
import pytest
from click.testing import CliRunner
from support.command_help import commands

from inturn.applier.inside.hand import TooManyAbandoned
from inturn.cli.errors import Failure, explain
from inturn.cli.exit_codes import ExitCode
from inturn.cli.main import COMMANDS, cli
from inturn.cli.terminal import output
from inturn.schema.errors import SchemaMismatch

WIDTH = 80


ALL = list(commands(cli))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_fits_80_columns_and_ends_with_an_example(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*path, "--help"], prog_name="inturn")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= WIDTH
    example = lines[next(i for i, line in enumerate(lines) if line.strip() == "Example:") + 1 :]
    assert example
    assert all("inturn " in line for line in example)


def test_every_command_of_the_help_can_be_loaded_and_says_the_same() -> None:
    top = {path[0] for path in ALL if path}
    assert top == {name for section in COMMANDS.values() for name in section}


def test_what_is_mistyped_is_told_what_may_be_meant() -> None:
    for typed, says in (
        ("shwo", "No such command 'shwo'. Did you mean 'show'? See: inturn --help"),
        ("fillgap", "No such command 'fillgap'. Did you mean 'fill-gap'? See: inturn --help"),
        ("parrot", "No such command 'parrot'. See: inturn --help"),
    ):
        with pytest.raises(click.UsageError) as refused:
            cli.main([typed], "inturn", standalone_mode=False)
        assert explain(refused.value) == (says, ExitCode.USAGE)


def test_help_needs_neither_database_driver_nor_extras() -> None:
    code = (
        "import sys; from inturn.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'psycopg', 'sqlalchemy', 'alembic', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_version_is_that_of_the_package() -> None:
    result = CliRunner().invoke(cli, ["--version"])
    assert result.output.startswith("inturn, version ")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("order-42", "order-42"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\u202egnp", r"\u202egnp"),
        ("\x9b1m", r"\x9b1m"),
        ("\u200b", r"\u200b"),
        ("\udcff", r"\udcff"),
        ("Grüße 魏 🙂", "Grüße 魏 🙂"),
    ],
)
def test_what_could_move_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert output.escape(text) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, ""), (-1, "0s"), (0.4, "0s"), (59.9, "59s"), (60, "1m"), (7200, "2h"), (86400 * 9, "9d")],
)
def test_ages_are_in_one_unit(seconds: float | None, shown: str) -> None:
    assert output.age(seconds) == shown


@pytest.mark.parametrize("cut", ["middle", "end"])
def test_a_cut_cell_fills_its_width_and_no_more(cut: str) -> None:
    assert len(output.shorten("a" * 50, 11, cut)) == 11  # type: ignore[arg-type]
    assert output.shorten("魏" * 50, 11, "end") == "魏" * 5 + "…"


def test_a_number_that_python_cannot_hold_still_makes_valid_json() -> None:
    payload = output.load_payload('{"a": 1e999, "b": ' + "9" * 5000 + ', "c": 1.5, "d": 7}')
    assert payload == {"a": "1e999", "b": "9" * 5000, "c": 1.5, "d": 7}


@pytest.mark.parametrize(
    "message",
    [
        "unexpected postgresql://app:s3cret@db/x here",
        "unexpected postgresql://app:s3@cret/s3cret@db/x",
        "unexpected host=db password=s3cret",
        "unexpected password='s3 s3cret' x",
        "unexpected postgresql://db/x?user=app&password=s3cret",
    ],
)
def test_no_error_line_holds_a_password(message: str) -> None:
    line, _ = explain(click.UsageError(message))
    assert "s3" not in line
    assert "***" in line


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Failure("x", code=ExitCode.UNREACHABLE), 4),
        (click.Abort(), 130),
        (click.UsageError("x"), 2),
        (OSError(28, "No space left on device"), 1),
        (KeyError("x"), 1),
        (psycopg.OperationalError("server closed the connection\nunexpectedly"), 4),
        (psycopg.errors.DiskFull("x"), 1),
        (SchemaMismatch("x"), 5),
        (TooManyAbandoned(10), 10),
    ],
)
def test_every_error_is_one_line_with_its_exit_code(error: BaseException, code: int) -> None:
    line, found = explain(error)
    assert found == code
    assert line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("command", "module"), [("apply", "run.apply"), ("demo", "demo.command"), ("keys", "look.keys")]
)
def test_a_command_that_cannot_be_loaded_does_not_break_the_others(command: str, module: str) -> None:
    code = (
        f"import sys; sys.modules['inturn.cli.{module}'] = None\n"
        f"from inturn.cli.main import main; main([{command!r}])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == ExitCode.ERROR
    assert run.stderr.startswith("inturn: a part of inturn cannot be loaded")
    assert run.stderr.count("\n") == 1


def test_a_ctrl_c_while_it_is_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n")
    program = Path(sys.executable).with_name("inturn")
    run = subprocess.run(
        [program, "keys"], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (ExitCode.INTERRUPTED, "", "\ninturn: interrupted\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [Path(sys.executable).parent / "inturn", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=os.environ | {"PYTHONWARNINGS": "error"},
        )
    assert (run.returncode, run.stderr) == (1, "inturn: No space left on device\n")
