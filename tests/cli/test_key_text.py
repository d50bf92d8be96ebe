"""A key is printed so that a shell gives it back, and what was given is found again."""

from __future__ import annotations

import subprocess
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.database import Database
from support.process import run_inturn
from support.roles import OWNER

from inturn.applier.failure import on_one_line
from inturn.cli.errors import explain
from inturn.cli.terminal.key_text import escaped, resolve, shown, to_paste, unescaped
from inturn.cli.terminal.output import escape
from inturn.schema.errors import UnknownKey

ODD = st.sampled_from([*"\\'\"%$`!#~=:;*?[]{}()<>|& -\n\t\x1b\x7f\u202e\u200b\u2066\ufeff", "\\x1b", "\\\\"])
KEYS = st.lists(ODD | st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).map(
    lambda parts: "".join(parts)[:120]
)


@pytest.fixture
def connection(database: Database) -> psycopg.Connection[Any]:
    connection = database.connect(user=OWNER)
    connection.execute("SELECT inturn.create_topic('orders'), inturn.create_topic('bills')")
    return connection


def through_bash(words: list[str]) -> list[str]:
    """Return what a program gets when this is pasted as its arguments."""
    script = f"printf '%s\\0' {' '.join(words)}"
    run = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    return run.stdout.decode().split("\0")[:-1]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(keys=st.lists(KEYS, min_size=1, max_size=20, unique=True))
def test_what_is_printed_goes_through_a_shell_and_is_found(
    connection: psycopg.Connection[Any], keys: list[str]
) -> None:
    printed = [shown(key) for key in keys]
    assert all(text.isprintable() for text in printed)
    given_back = through_bash(printed)
    with connection.transaction(force_rollback=True):
        connection.execute(
            "SELECT inturn.append_many('orders', %s, array_fill('x'::text, %s))", [keys, [len(keys)]]
        )
        assert [resolve(connection, "inturn", text) for text in given_back] == keys


@given(key=KEYS)
def test_an_escaped_key_stands_for_itself_alone(key: str) -> None:
    assert unescaped(escaped(key)) == key


@pytest.mark.parametrize(
    ("key", "printed"),
    [
        ("order-42", "order-42"),
        ("tenant:eu/1@x=2,%", "'tenant:eu/1@x=2,%'"),
        ("%", "%"),
        ("-dash", "-dash"),
        ("=ls", "'=ls'"),
        ("Grüße 魏", "'Grüße 魏'"),
        ("a\\b", r"'a\\b'"),
        ("a\x1b[2J\n", r"'a\x1b[2J\n'"),
        ("\u202eevil", r"'\u202eevil'"),
        ("\U000e0001", r"'\U000e0001'"),
        ("it's", """'it'"'"'s'"""),
        ("k" * 512, "k" * 512),
    ],
)
def test_how_a_key_is_printed(key: str, printed: str) -> None:
    assert shown(key) == printed
    assert through_bash([printed]) == [escaped(key)]


def test_a_key_that_begins_with_a_dash_is_no_option_in_what_is_to_be_pasted() -> None:
    assert to_paste("retry", "k", "orders") == "inturn retry k --topic orders"
    assert to_paste("retry", "-k", "orders") == "inturn retry --topic orders -- -k"


@pytest.mark.parametrize(
    "text", ["a\\b", "\\", "\\x1", "\\x00", "\\ud800", "\\U00110000", "\\N{DASH}", "\\101"]
)
def test_what_is_never_printed_is_taken_literally(connection: psycopg.Connection[Any], text: str) -> None:
    assert unescaped(text) is None
    assert resolve(connection, "inturn", text) == text


def test_as_printed_comes_before_literally_and_literally_where_there_is_no_such_key(
    connection: psycopg.Connection[Any],
) -> None:
    assert resolve(connection, "inturn", r"a\n") == r"a\n"
    connection.execute("SELECT inturn.append('orders', %s, 'insert')", [r"a\n"])
    assert resolve(connection, "inturn", r"a\n") == r"a\n"
    connection.execute("SELECT inturn.append('bills', %s, 'insert')", ["a\n"])
    assert resolve(connection, "inturn", r"a\n") == "a\n"
    assert resolve(connection, "inturn", r"a\n", topic="orders") == r"a\n"
    assert resolve(connection, "inturn", r"a\\n") == r"a\n"


def test_an_error_shows_a_key_as_it_is(connection: psycopg.Connection[Any], database: Database) -> None:
    """The rest of a message is on one line, with single blanks, however it was written."""
    for key in ("a  b", "a  b's  c", "a\tb", "a\n  b"):
        connection.execute("SELECT inturn.append('orders', %s, 'insert')", [key])
        named = "key " + escape("'" + key.replace("'", "''") + "'") + " of topic"
        for action in ("skip --seq 7 --reason r", "retry", "resume"):
            _, _, said = run_inturn(database.dsn, *action.split(), escaped(key))
            assert named in said, (action, said)
    said, _ = explain(UnknownKey("no  such\n   key 'a  b' of\ninturn's,  nor 'c''d  \n e'", hint=" See\nit "))
    assert said == r"no such key 'a  b' of inturn's, nor 'c''d  \n e'. See it"
    assert on_one_line(ValueError("one\n  line of\t 'a  b'")) == "one line of 'a  b'"
