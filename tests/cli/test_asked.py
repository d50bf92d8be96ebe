"""The tests' `inturn` for shells is as the installed one to whoever starts it: see support.asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.asked import INSTALLED
from support.database import Database, Session, until
from support.forked import folder_of_inturn, folder_of_python


@pytest.fixture(params=["installed", "asked"])
def inturn(request: pytest.FixtureRequest) -> Path:
    return INSTALLED if request.param == "installed" else folder_of_inturn() / "inturn"


def _said(inturn: Path, line: str, folder: Path, **environment: str) -> tuple[int, str, str]:
    """Run a line of bash in a folder, in which the program is $inturn."""
    known = {**os.environ, "inturn": str(inturn), "INTURN_EMBEDDED_DATA": "/dev/null/postgres"}
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, cwd=folder, env=known | environment
    )
    return done.returncode, done.stdout, done.stderr


@contextmanager
def _waiting(
    inturn: Path, database: Database, line: str = 'exec "$inturn" append orders k n'
) -> Iterator[subprocess.Popen[str]]:
    """Start an append that waits for another session's, which ends with the block."""
    other: Session = database.session()
    other.execute("SELECT inturn.append('orders', 'k', 'insert')")
    process = subprocess.Popen(
        ["bash", "-c", line],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "inturn": str(inturn), "INTURN_DSN": database.caller_dsn},
    )
    until(lambda: _blocked(database, other), "the append to wait")
    yield process
    other.rollback()
    process.communicate(timeout=30)


def _blocked(database: Database, by: Session) -> bool:
    blocked = "SELECT FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
    return bool(database.execute(blocked, [by.pid]))


def test_it_has_the_words_the_streams_the_variables_and_the_exit_code(
    inturn: Path, database: Database, tmp_path: Path
) -> None:
    database.execute("SELECT inturn.create_topic('orders')")
    line = """
        echo '{"a": "ü"}' | "$inturn" append orders "a key" insert - || exit
        "$inturn" append nosuch k insert; echo $?; "$inturn" nosuch 2>/dev/null; echo $?
    """
    code, out, err = _said(inturn, line, tmp_path, INTURN_DSN=database.caller_dsn)
    assert (code, out) == (0, "1\n1\n2\n")
    assert err.startswith("inturn: ")
    assert err.count("\n") == 1
    assert database.execute("SELECT key, payload FROM inturn.command_log") == [("a key", {"a": "ü"})]


def test_it_runs_in_the_folder_with_the_umask(inturn: Path, database: Database, tmp_path: Path) -> None:
    """An applier finds its app in the folder, and what that writes has the rights of the shell."""
    (tmp_path / "mine.py").write_text(
        "import pathlib, sys\nfrom inturn.applier import Applier\napplier = Applier()\n"
        "applier.handler('orders')(lambda *_: pathlib.Path('written').write_text(' '.join(sys.argv[1:])))\n"
    )
    database.execute("SELECT inturn.create_topic('orders')")
    database.execute("SELECT inturn.append('orders', 'k', 'insert')")
    line = 'umask 027; "$inturn" apply --app mine:applier --drain'
    code, _, err = _said(inturn, line, tmp_path, INTURN_DSN=database.applier_dsn)
    assert code == 0, err
    assert (tmp_path / "written").read_text() == "apply --app mine:applier --drain"
    assert (tmp_path / "written").stat().st_mode & 0o777 == 0o640


def test_it_writes_by_lines_on_a_terminal(inturn: Path, database: Database, tmp_path: Path) -> None:
    """Both streams of a shell on a terminal come in the order in which they were written."""
    (tmp_path / "mine.py").write_text(
        "import os, sys\nprint('one')\nprint('two', file=sys.stderr)\nprint('three')\nos._exit(40)\n"
    )
    ours, theirs = os.openpty()
    done = subprocess.run(
        [inturn, "apply", "--app", "mine:applier", "--drain"],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "INTURN_DSN": database.applier_dsn, "PYTHONUNBUFFERED": ""},
    )
    os.close(theirs)
    printed = b""
    with suppress(OSError):  # how Linux says that the other side is closed, and all was read
        while True:
            printed += os.read(ours, 1000)
    assert (printed.split(), done.returncode) == ([b"one", b"two", b"three"], 40)
    os.close(ours)


def test_a_signal_reaches_it(inturn: Path, database: Database) -> None:
    database.execute("SELECT inturn.create_topic('orders')")
    with _waiting(inturn, database) as process:
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "\ninturn: interrupted\n")
        assert process.returncode == 130


def test_what_a_shell_has_ignored_for_it_is_ignored(inturn: Path, database: Database) -> None:
    """As SIGINT is of a job in the background of a script."""
    database.execute("SELECT inturn.create_topic('orders')")
    line = '"$inturn" append orders k n & read; kill -INT $!; echo sent; wait $!'
    with _waiting(inturn, database, line) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "sent\n"
    assert process.returncode == 0


def test_what_ends_it_its_shell_is_told(inturn: Path, database: Database) -> None:
    database.execute("SELECT inturn.create_topic('orders')")
    with _waiting(inturn, database) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM


def test_killed_it_leaves_nothing_behind(inturn: Path, database: Database) -> None:
    sessions = "SELECT FROM pg_stat_activity WHERE application_name = 'inturn apply' AND datname = %s"
    database.execute("CREATE SCHEMA app")
    database.execute("CREATE FUNCTION app.f(c inturn.command) RETURNS void LANGUAGE sql AS 'SELECT'")
    database.execute("SELECT inturn.create_topic('orders', 'sql:app.f')")
    with subprocess.Popen(
        [inturn, "apply"], stderr=subprocess.DEVNULL, env={**os.environ, "INTURN_DSN": database.applier_dsn}
    ) as process:
        until(lambda: database.execute(sessions, [database.name]), "its sessions")
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
        until(lambda: not database.execute(sessions, [database.name]), "its sessions to be gone")


@pytest.mark.parametrize("python", ["installed", "asked"])
def test_a_script_has_its_words_its_folder_and_its_exit_code(python: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "other.py").write_text("here = 'found'\n")
    (tmp_path / "mine" / "script.py").write_text(
        "import sys, other\nprint(__name__, sys.argv, other.here, sys.stdin.read())\n"
        "if len(sys.argv) > 1: raise SystemExit('the end')\n"
    )
    path = str(Path(sys.executable).parent if python == "installed" else folder_of_python())
    line = """
        PATH=$folder:$PATH
        echo in | python mine/script.py "a word" 2>&1; echo $?; python mine/script.py </dev/null; echo $?
        cd mine
        echo "import other, sys; print(__name__, sys.argv, other.here); 1/0" | python 2>/dev/null; echo $?
        python -c "print(40)"
    """
    code, out, _ = _said(Path(path), line.replace("$folder", path), tmp_path)
    assert code == 0
    assert out.splitlines() == [
        "__main__ ['mine/script.py', 'a word'] found in",
        *("", "the end", "1", "__main__ ['mine/script.py'] found ", "0"),
        *("__main__ [''] found", "1", "40"),
    ]


def test_what_python_reads_at_its_start_makes_it_the_installed_one(
    database: Database, tmp_path: Path
) -> None:
    line = 'exec "$inturn" apply --app mine:applier --drain'
    (tmp_path / "mine.py").write_text("import os, sys\nos._exit(40 + sys.flags.utf8_mode)\n")
    inturn = folder_of_inturn() / "inturn"
    dsn = database.applier_dsn
    for mode in ("0", "1"):
        assert _said(inturn, line, tmp_path, INTURN_DSN=dsn, PYTHONUTF8=mode)[0] == 40 + int(mode)
