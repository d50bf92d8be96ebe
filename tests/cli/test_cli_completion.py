"""Completion in a real bash with a real database; click's scripts for zsh and fish are only looked at."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time

import pytest
from support.database import Database
from support.forked import folder_of_inturn
from support.process import run_inturn
from support.roles import OPERATOR, as_role

KEYS = ["order-42", "order:7", "tenant:eu:1", "eq=1", "evil\x1b[2J\u202e", "it's a\\b", "50%_x", "Grüße 1"]


def _environment(dsn: str | None) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "INTURN_"))}
    return kept | {
        "PATH": f"{folder_of_inturn()}:{os.environ['PATH']}",
        "INTURN_EMBEDDED_DATA": "/dev/null/postgres",
        "LC_ALL": "C.UTF-8",
        "PS1": "$ ",
        "TERM": "dumb",
        **({"INTURN_DSN": as_role(dsn, OPERATOR)} if dsn else {}),
    }


@pytest.fixture
def keys(database: Database) -> Database:
    database.execute("SELECT inturn.create_topic('orders'), inturn.create_topic('bills')")
    for key in KEYS:
        database.execute("SELECT inturn.append('orders', %s, 'insert')", [key])
    database.execute("SELECT inturn.append('bills', 'order-9', 'insert')")
    return database


def _offered(dsn: str | None, line: str) -> list[str]:
    """Return what our function offers in bash for the end of a line whose words have no quotes."""
    return _offered_each(dsn, line)[0]


def _offered_each(dsn: str | None, *lines: str) -> list[list[str]]:
    """Return it for each of some lines of one bash."""
    script = """
        eval "$(inturn completion bash)"
        for line; do
            COMP_LINE=$line COMP_POINT=${#line} COMP_WORDS=($line) COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
            COMPREPLY=()
            _inturn_completion inturn
            printf '%s\\n' "${COMPREPLY[@]}"
            printf '\\036'
        done
    """
    run = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *lines],
        capture_output=True,
        text=True,
        check=True,
        env=_environment(dsn),
    )
    assert run.stderr == ""
    return [each.split("\n")[:-1] for each in run.stdout.split("\x1e")[:-1]]


def _typed(dsn: str, typed: str) -> str:
    """Type into an interactive bash with a tab at the end; return the last argument that comes of it."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], _environment(dsn))
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 30
        while not re.search(text, seen):
            assert time.monotonic() < deadline, seen
            if select.select([terminal], [], [], 1)[0]:
                seen += os.read(terminal, 4096)

    def send(text: str) -> None:
        nonlocal seen
        seen = b""
        os.write(terminal, text.encode())

    try:
        # inturn only says what it was called with, once its completion is there.
        send("bind 'set enable-bracketed-paste off'; eval \"$(inturn completion bash)\"; echo re''ady\n")
        wait_for(rb"\nready")
        send("inturn() { printf '%s|' \"$@\"; echo do''ne; }; echo re''ady\n")
        wait_for(rb"\nready")
        send(f"inturn {typed}\t")
        # A completion that is the only one ends with a blank, which bash writes last.
        wait_for(rb" $")
        send("\n")
        wait_for(rb"done")
        called = re.search(r"([^\n]*)\|done", seen.decode())
        assert called is not None
        return called[1].split("|")[-1]
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


#: A line, and what is offered at its end.
OFFERED: dict[str, list[str]] = {
    "inturn why ord": ["order-42", "order-9", "order:7"],
    "inturn why --topic bills ord": ["order-9"],
    "inturn why --topic=bills ord": ["order-9"],
    "inturn why --topic or": ["orders"],
    "inturn why --topic=or": ["orders"],
    "inturn keys --topic b": ["bills"],
    "inturn append b": ["bills"],
    "inturn why evil": [r"'evil\x1b[2J\u202e'"],
    r"inturn why evil\\x1": [r"'evil\x1b[2J\u202e'"],
    "inturn why it": ["'it'\"'\"'s a\\\\b'"],
    "inturn why 50%_": ["50%_x"],
    "inturn why 5%": [],
    # bash has the part up to the last : or = on the line already.
    "inturn why order:": ["7"],
    "inturn why tenant:eu:": ["1"],
    "inturn why eq=": ["1"],
    "inturn nosuch ord": [],
    "inturn stat": ["status"],
}


def test_bash_is_offered_commands_topics_and_keys(keys: Database) -> None:
    found = dict(zip(OFFERED, _offered_each(keys.dsn, *OFFERED), strict=True))
    assert found == {line: offered or [""] for line, offered in OFFERED.items()}


#: What is typed before a tab, and the key that it becomes.
TYPED = [
    ("why order-4", "order-42"),
    ("why order:", "order:7"),
    ("why ten", "tenant:eu:1"),
    ("why 'ten", "tenant:eu:1"),
    ("why evil", r"evil\x1b[2J\u202e"),
    ("why it", "it's a\\\\b"),
    ("why Gr", "Grüße 1"),
    ("why --topic bills ord", "order-9"),
]


def test_a_tab_in_a_real_bash_puts_in_a_key_that_the_shell_takes(keys: Database) -> None:
    for typed, key in TYPED:
        assert _typed(keys.dsn, typed) == key, typed


def test_the_line_itself_may_name_the_database_and_the_schema(keys: Database) -> None:
    socket, port = keys.server.directory, keys.server.port
    dsn = f"postgresql://{OPERATOR}@/{keys.name}?host={socket}&port={port}"
    assert _offered(None, f"inturn --dsn {dsn} why order-4") == ["order-42"]
    assert _offered(None, f"inturn why --dsn {dsn} order-4") == ["order-42"]
    assert _offered(keys.dsn, "inturn --schema nosuch why order-4") == [""]


@pytest.mark.parametrize("dsn", [None, "host=127.0.0.1 port=1", "nonsense", "host=/nowhere dbname=x"])
def test_without_a_database_nothing_is_offered_and_nothing_said(dsn: str | None) -> None:
    assert _offered(dsn, "inturn why ord") == [""]


def test_a_database_that_does_not_answer_is_not_waited_for(keys: Database) -> None:
    session = keys.session()
    session.execute("LOCK TABLE inturn.key_sequence IN ACCESS EXCLUSIVE MODE")
    assert _offered(keys.dsn, "inturn why ord") == [""]
    # It has given up: what it asks for is locked still.
    held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND pid = %s"
    assert keys.value(held, [session.pid]) > 0


def test_at_most_50_keys_are_offered(keys: Database) -> None:
    keys.execute("SELECT inturn.append('orders', 'many' || n, 'insert') FROM generate_series(1, 60) n")
    assert len(_offered(keys.dsn, "inturn why many")) == 50


@pytest.mark.parametrize(
    ("shell", "word"), [("bash", "complete -o nosort -F"), ("zsh", "#compdef inturn"), ("fish", "complete")]
)
def test_the_script_is_printed_for_every_shell(shell: str, word: str) -> None:
    code, out, err = run_inturn("host=127.0.0.1 port=1", "completion", shell)
    assert (code, err) == (0, "")
    assert word in out
    assert "_INTURN_COMPLETE=" in out


def test_the_script_for_bash_has_our_changes_to_clicks() -> None:
    _, out, _ = run_inturn("host=127.0.0.1 port=1", "completion", "bash")
    assert "read -r type" in out
    assert 'COMP_LINE="$COMP_LINE"' in out
