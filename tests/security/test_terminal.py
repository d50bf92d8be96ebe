"""Whatever topics, keys, commands, errors and reasons hold, a terminal is given none of it to obey."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

import pytest
from support.database import Database
from support.place import ROOT
from support.roles import APPLIER, with_login
from support.terminal import commands_of

from inturn.cli.act.actions import ACTIONS
from inturn.cli.look import why
from inturn.cli.main import cli, main
from inturn.cli.run.logs import _TextFormatter
from inturn.cli.terminal import output
from inturn.cli.terminal.output import echo, escape, print_json

#: Clears the screen, sets the title, goes back to the line's start, begins another line, turns the writing
#: around, and does the first by one character of C1; its end would begin an output of its own.
EVIL = "e\x1b[2J\x1b]0;t\x07\r\u202ei\u2066\x9b2J\x85\u2028\x7f\x0b\nPWNED"
T, K = "t" + EVIL, "k" + EVIL
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

#: Every command, with arguments that make it print what is evil. The last ones are wrong on purpose.
COMMANDS: dict[str, list[list[str]]] = {
    # An operator's action, unless it has a line of its own below.
    **{action.name: [[K, "--reason", EVIL], ["no" + EVIL, "--reason", EVIL]] for action in ACTIONS},
    "upgrade": [["--schema", EVIL], ["--sql", "--schema", EVIL]],
    "downgrade": [["--schema", EVIL], ["--to", EVIL]],
    "topic create": [["made" + EVIL], ["x", "--target", "sql:" + EVIL], ["x", "--lease", EVIL]],
    "topic list": [[]],
    "topic show": [[T], ["no" + EVIL]],
    "topic set": [[T, "--max-attempts", "9", "--reason", EVIL], [T, "--on-exhausted", EVIL]],
    "embedded start": [[EVIL]],
    "embedded status": [[EVIL]],
    "embedded stop": [[EVIL]],
    "completion": [[EVIL]],
    "append": [[T, K, "n" + EVIL, json.dumps(EVIL)], [T, K, "n", EVIL], ["no" + EVIL, K, "n"]],
    "apply": [["--topic", "no" + EVIL], ["--app", EVIL], ["--topic", T, "--drain"]],
    "demo": [[EVIL]],
    "status": [[], ["--check"], ["--topic", T], ["--topic", EVIL]],
    "keys": [[], ["--errors"], ["--held"], ["--topic", EVIL], ["--like", EVIL], ["--older-than", EVIL]],
    "why": [[K], ["k-held" + EVIL], ["--topic", T, K], ["no" + EVIL], ["k" + EVIL[:-1]]],
    "show": [
        [K, "--errors", "--payload"],
        ["k-held" + EVIL, "--errors"],
        ["no" + EVIL],
        [K, "--topic", EVIL],
    ],
    "verify": [[], ["--topic", EVIL]],
    "topic grant": [[T, "--caller", EVIL], ["no" + EVIL, "--operator", "x"]],
    "topic merge": [[T, "a" + EVIL, "b", "last"], [T], [T, EVIL, "b", EVIL], ["no" + EVIL]],
    "topic revoke": [[T, "--caller", EVIL], ["no" + EVIL, "--operator", "x"]],
    "wait": [[K, "--timeout", "0"], ["k-held" + EVIL, "--timeout", "0"], ["no" + EVIL], [K, EVIL]],
    "prune": [["--older-than", "1d"], ["--topic", EVIL], ["--older-than", EVIL]],
    "metrics": [["--keys", "9"], ["--format", EVIL]],
    "doctor": [["--long", "0"], ["--long", EVIL]],
    "retry": [["k-held" + EVIL, "--as", EVIL, "--reason", EVIL], ["no" + EVIL]],
    "skip": [["k-held" + EVIL, "--reason", EVIL, "--dry-run"], ["no" + EVIL, "--reason", EVIL]],
    "amend": [["k-held" + EVIL, "--reason", EVIL, "--name", EVIL], ["no" + EVIL, "--reason", EVIL]],
    "replay": [[K, "1", "--reason", EVIL], ["no" + EVIL, "1", "--reason", EVIL]],
    "cancel-rest": [["k-held" + EVIL, "--reason", EVIL, "--dry-run"], ["no" + EVIL, "--reason", EVIL]],
    "pause": [[K, "--reason", EVIL], ["--topic", T, "--reason", EVIL], ["no" + EVIL]],
    "resume": [[K, "--reason", EVIL], ["--topic", T, "--reason", EVIL], ["no" + EVIL]],
}


@pytest.fixture
def evil(database: Database) -> Database:
    """A database in which everything that a caller, an applier or an operator may write is evil."""
    database.execute("SELECT inturn.create_topic(%s, max_attempts => 1)", [T])
    database.execute("SELECT inturn.create_topic('late' || %s, numbering => 'given')", [EVIL])
    for key in (K, "k-held" + EVIL):
        database.execute("SELECT inturn.append(%s, %s, %s, %s)", [T, key, "n" + EVIL, json.dumps(EVIL)])
    database.execute("SELECT inturn.append('late' || %s, %s, 'n', seq => 3)", [EVIL, "w" + EVIL])
    database.execute("SELECT set_config('inturn.os_user', %s, false)", [EVIL])
    database.execute("SELECT inturn.pause(%s, %s, %s)", [T, K, EVIL])
    with database.connect(user=APPLIER, autocommit=False) as applier:
        (claimed,) = applier.execute("SELECT key, epoch FROM inturn.claim(%s)", [T]).fetchall()
        applier.execute("SELECT inturn.fail(%s, %s, 1, %s, 1, %s, %s)", [T, *claimed, EVIL, EVIL])
    database.execute("SELECT inturn.announce_applier(%s, %s, %s, 7, '0001')", [EVIL, [T], EVIL])
    return database


def assert_tame(printed: str) -> None:
    for line in _COLOURS.sub("", printed).split("\n"):
        assert escape(line) == line
        assert not line.startswith("PWNED")


def test_every_command_is_attacked() -> None:
    assert sorted(commands_of(cli)) == sorted(COMMANDS)


@pytest.mark.parametrize("coloured", [False, True], ids=["plain", "coloured"])
def test_no_command_prints_what_a_terminal_obeys(
    evil: Database,
    coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    if coloured:  # as on a terminal, but for what comes after: no code is printed into a pipe
        monkeypatch.setenv("FORCE_COLOR", "1")
        for module in (output, why):
            monkeypatch.setattr(module, "terminal_width", lambda: 80)
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    attacked = 0
    try:
        for name, scenes in COMMANDS.items():
            for arguments in scenes:
                monkeypatch.setenv("INTURN_DSN", with_login(evil.dsn, *name.split())[0])
                with pytest.raises(SystemExit) as ended:
                    main([*name.split(), *arguments])
                printed, said = capfd.readouterr()
                assert_tame(printed)
                assert_tame(said)
                assert "internal error" not in said, (name, arguments)
                attacked += "PWNED" in printed + said
                assert ended.value.code is not None
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert attacked > 40, "what is evil was printed, and was tame"


def test_a_log_line_is_tame_with_its_traceback() -> None:
    try:
        Path("/nowhere" + EVIL).read_text()
    except OSError:
        record = logging.LogRecord("n", logging.ERROR, "p", 1, EVIL, None, sys.exc_info())
    record.topic = EVIL
    assert_tame(_TextFormatter().format(record))


def test_json_is_visible_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({EVIL: EVIL})
    printed = capsys.readouterr().out
    assert_tame(printed)
    assert printed.isascii()
    assert json.loads(printed) == {EVIL: EVIL}


def test_a_line_that_is_echoed_stays_one(capsys: pytest.CaptureFixture[str]) -> None:
    echo(EVIL)
    assert capsys.readouterr().out == escape(EVIL) + "\n"


def test_nothing_is_printed_past_the_one_place() -> None:
    past = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "cli").rglob("*.py"))
        if path.relative_to(ROOT) != Path("cli/terminal/output.py") and "demo" not in path.parts
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if re.search(r"click\.(s?echo|secho)\(|\bprint\(|console\.print\(|std(out|err)\.write\(", line)
    ]
    assert past == []
