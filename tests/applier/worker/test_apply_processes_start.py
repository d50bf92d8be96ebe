"""`inturn apply --processes`: how its processes start, what is said when they cannot, and that none stays."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo
from support.database import Database, set_revision, until
from support.place import TESTS
from support.process import InturnProcess, inturn_apply, run_apply, run_inturn
from support.processes import (
    TWO,
    applying_pid,
    children_of,
    is_there,
    one_line,
    options,
    wait_gone,
    wait_serving,
)
from support.shop import (
    append,
    applied,
    assert_once_and_in_turn,
    gate_shut,
    open_shop,
    wait_at_gate,
)

from inturn.cli.run import child, processes
from inturn.cli.run.processes import Processes
from inturn.cli.run.serve import Options

PASSWORD = "s3cret-p4ssword"


def test_a_parent_killed_before_its_processes_are_at_work_leaves_none(
    database: Database, tmp_path: Path
) -> None:
    open_shop(database)
    with _slow_app(database, tmp_path) as (process, gate):
        children = children_of(process.pid)
        process.kill()
        gate.unlink()
        wait_gone(children)


def test_a_signal_before_the_processes_are_at_work_ends_them_at_once(
    database: Database, tmp_path: Path
) -> None:
    open_shop(database)
    with _slow_app(database, tmp_path) as (process, _):
        children = children_of(process.pid)
        process.send(signal.SIGTERM)
        assert process.exit_code() == 0
        assert (process.out, process.err) == ("", "")
        assert not any(map(is_there, children))


def test_a_ctrl_c_waits_until_a_process_counts_signals(database: Database, tmp_path: Path) -> None:
    """It reaches parent and processes at once; in the midst of an import it was a traceback of each."""
    open_shop(database)
    with _slow_app(database, tmp_path) as (process, gate):
        children = children_of(process.pid)
        assert [_takes_ctrl_c(child.pid) for child in children] == [False, False]
        assert _takes_ctrl_c(process.pid)
        gate.unlink()
        wait_serving(database)
        assert [_takes_ctrl_c(child.pid) for child in children] == [True, True]


def _takes_ctrl_c(pid: int) -> bool:
    (blocked,) = re.findall(r"^SigBlk:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return not int(blocked, 16) & 1 << (signal.SIGINT - 1)


@contextmanager
def _slow_app(database: Database, folder: Path) -> Iterator[tuple[InturnProcess, Path]]:
    """Run two processes that are importing an app until the file given is removed."""
    gate = folder / "gate"
    gate.touch()
    (folder / "slow_app.py").write_text(
        "import os, pathlib, time\n"
        "from support.shop import applier\n"
        "here = pathlib.Path(__file__).parent\n"
        "(here / f'importing-{os.getpid()}').touch()\n"
        "while (here / 'gate').exists(): time.sleep(0.002)\n"
    )
    path = os.pathsep.join([str(TESTS), str(folder)])
    with inturn_apply(database.dsn, *TWO, app="slow_app:applier", PYTHONPATH=path) as process:
        until(lambda: len(list(folder.glob("importing-*"))) == 2, "both import")
        yield process, gate


def test_a_process_that_does_not_answer_is_killed(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    open_shop(database, target="sql")
    monkeypatch.setattr(processes, "LINGER_SECONDS", 0.1)
    with gate_shut(database) as gate, Processes(options(database.applier_dsn), 2, lambda: 0) as pair:
        append(database, "a", "after")
        pair.start()
        (backend,) = wait_at_gate(database)
        os.kill(applying_pid(database, backend), signal.SIGSTOP)
        outcome = pair.end(0)
        assert (outcome.cut, outcome.commands, outcome.error) == (True, 0, None)
        assert "did not end, and is killed" in caplog.text
        assert not pair.running
        gate.rollback()
    # It had the key alone, by a lease of a second.
    until(lambda: run_apply(database.dsn, "--drain", app=None)[0] or applied(database, "a"), "its lease over")
    assert_once_and_in_turn(database)


def test_leaving_the_block_leaves_no_process(database: Database) -> None:
    open_shop(database, target="sql")

    def fail() -> None:
        with Processes(options(database.applier_dsn), 2, lambda: 0) as pair:
            pair.start()
            assert len(children_of(os.getpid())) == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert children_of(os.getpid()) == []


def test_options_arrive_as_they_were_given(database: Database) -> None:
    given = options(database.applier_dsn)
    assert Options.from_json(given.as_json()) == given


def test_of_several_failures_the_exit_code_is_that_which_a_restart_cannot_help() -> None:
    failures = {"refused": 1, "gone": 4, "newer": 5, "interrupted": 130, "usage": 2}
    assert processes.worst_first(failures) == ["usage", "newer", "gone", "refused", "interrupted"]


def test_a_report_and_what_follows_it_in_pieces_are_whole_lines() -> None:
    lines = child.Lines()
    lines.feed(b'{"a": 1}\n{"b"')
    assert list(lines) == ['{"a": 1}']
    lines.feed(b": 2}\n")
    assert list(lines) == ['{"b": 2}']


def test_no_command_line_and_no_output_holds_the_password(database: Database) -> None:
    open_shop(database)
    dsn = make_conninfo(database.dsn, password=PASSWORD)
    with inturn_apply(dsn, *TWO) as process:
        wait_serving(database)
        seen = [" ".join(each.cmdline()) for each in children_of(process.pid)]
        assert [line.count("process ") for line in seen] == [1, 1]
        assert PASSWORD not in "".join(seen)
        process.send(signal.SIGTERM)
        assert process.exit_code() == 0
        assert PASSWORD not in process.out + process.err


@pytest.mark.parametrize(
    ("args", "app", "code", "said"),
    [
        (("--topic", "nosuch"), None, 1, "inturn: topic 'nosuch' does not exist"),
        (("--drain",), None, 1, "inturn: there is no topic to serve"),
        ((), "nosuch.module:applier", 1, "cannot be loaded: ModuleNotFoundError"),
        ((), "support.shop", 2, "names no applier"),
    ],
)
def test_what_keeps_the_processes_from_work_is_said_once(
    database: Database, args: tuple[str, ...], app: str | None, code: int, said: str
) -> None:
    open_shop(database)
    found, out, err = run_apply(database.dsn, *TWO, *args, app=app)
    assert (found, out) == (code, "")
    one_line(err, said)


def test_a_database_that_is_down_or_does_not_fit_is_said_once_without_the_password(
    database: Database,
) -> None:
    down = f"postgresql://me:{PASSWORD}@127.0.0.1:1/shop"
    found, out, err = run_apply(down, *TWO)
    assert (found, out) == (4, "")
    assert PASSWORD not in one_line(err, "inturn: cannot connect")
    set_revision(database, "9999")
    found, out, err = run_apply(make_conninfo(database.dsn, password=PASSWORD), *TWO)
    assert (found, out) == (5, "")
    assert "pip install --upgrade inturn" in one_line(err, "newer than")
    assert PASSWORD not in err


def test_one_process_is_the_very_process_that_was_started(database: Database) -> None:
    open_shop(database)
    with inturn_apply(database.dsn, "--processes", "1") as process:
        assert wait_serving(database, 1) == [process.pid]
        assert children_of(process.pid) == []
        process.send(signal.SIGTERM)
        assert process.exit_code() == 0
        assert "processes" not in process.err


@pytest.mark.parametrize("number", ["0", "-1", "65", "two"])
def test_a_number_that_is_none_is_wrong_usage(database: Database, number: str) -> None:
    code, _, err = run_inturn(database.dsn, "apply", "--processes", number)
    assert code == 2
    assert "--processes" in one_line(err, "inturn: ")


def test_a_process_whose_parent_died_before_its_first_word_ends_without_one() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        run = subprocess.run(
            [sys.executable, "-m", "inturn.cli.run.child", "process 1 of 1", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            capture_output=True,
            check=False,
        )
    assert (run.stdout, run.stderr) == (b"", b"")
