"""Narrow and odd terminals, and pipes that colours are asked for: no number and no line is cut there."""

from __future__ import annotations

import re

import pytest
from rich.cells import cell_len
from support.database import Database
from support.process import run_inturn
from support.terminal import Terminal, on_terminal

USAGE = 2
LONG = "order-of-a-customer-with-a-very-long-name-" * 3


@pytest.fixture
def states(database: Database) -> Database:
    """A topic with a key in every state that has a column of its own."""
    database.execute(
        "SELECT inturn.create_topic('orders', 'http://b.internal/', numbering => 'given', lease => '1 hour',"
        " max_attempts => 9, backoff_base => '5 days', backoff_cap => '5 days')"
    )
    for key, seq in (("gap", 2), (LONG, 1), ("one", 1)):
        database.execute("SELECT inturn.append('orders', %s, 'insert', seq => %s)", [key, seq])
    database.execute(
        "SELECT FROM inturn.claim(topics => '{orders}', max_keys => 9, lease => NULL, applier => 'node:7')"
    )
    database.execute(
        "SELECT inturn.fail('orders', key, epoch, 1, 'no') FROM inturn.key_cursor WHERE key = 'one'"
    )
    return database


@pytest.mark.parametrize("asked", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_what_goes_into_a_pipe_is_whole_whatever_asks_for_colours(states: Database, asked: str) -> None:
    for command in (("keys",), ("status",), ("why", LONG)):
        plain, coloured = (
            _settled(run_inturn(states.dsn, *command, **environment)[1].splitlines())
            for environment in ({}, {asked: "1"})
        )
        assert plain == coloured
        assert any(LONG in line for line in plain)


def _settled(lines: list[str]) -> list[str]:
    """Leave out for how long something has lasted, and the blanks around it, which make up for its width."""
    return [re.sub(r" *\b\d+m?s\b *", " ", line) for line in lines]


def test_a_terminal_that_does_not_say_how_wide_it_is_has_eighty_columns(states: Database) -> None:
    for command in (("why", LONG), ("topic", "list"), ("topic", "show", "orders")):
        said = on_terminal(states.dsn, *command)
        assert said
        assert _settled(on_terminal(states.dsn, *command, COLUMNS="0")) == _settled(said)


@pytest.mark.parametrize("columns", [80, 60, 1])
def test_no_heading_and_no_number_is_cut(states: Database, columns: int) -> None:
    for command in ("status", "keys"):
        uncut = run_inturn(states.dsn, command)[1].splitlines()
        heading = [word for word in uncut[0].split() if word != "error"]
        lines = on_terminal(states.dsn, command, columns=columns)
        assert lines[0].split() == heading
        if columns == 80:
            assert max(map(len, lines[:2])) <= columns
            assert cell_len(lines[0]) > 70, "there is not too much room"


def test_a_sentence_of_wide_characters_is_broken_where_the_terminal_would(states: Database) -> None:
    states.execute("SELECT inturn.create_topic('mails', max_attempts => 1)")
    states.execute("SELECT inturn.append('mails', 'k', 'insert')")
    states.execute(
        "SELECT inturn.fail('mails', key, epoch, 1, 1, %s, 'me', 'hold') FROM inturn.claim('mails')",
        ["\u6ce8\u6587\u306f\u53d7\u3051\u4ed8\u3051\u3089\u308c\u307e\u305b\u3093" * 9],
    )
    says = [line for line in on_terminal(states.dsn, "why", "k") if line.startswith("  ") and "$" not in line]
    assert len(says) > 2
    assert max(map(cell_len, says)) <= 80


def test_what_an_encoding_does_not_have_is_escaped_before_columns_are_aligned(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('orders')")
    for key in ("\u6ce8\u6587", "caf\u00e9", "k"):
        database.execute("SELECT inturn.append('orders', %s, 'insert')", [key])
    code, out, _ = run_inturn(database.dsn, "keys", PYTHONIOENCODING="ascii")
    heading, *rows = out.splitlines()
    assert code == 0
    assert {row.index(" ready ") + 1 for row in rows} == {heading.index("state")}
    assert sorted(row.split()[1] for row in rows) == ["'\\u6ce8\\u6587'", "'caf\\xe9'", "k"]
    lines = on_terminal(database.dsn, "topic", "show", "orders", columns=20, PYTHONIOENCODING="ascii")
    assert all(line.isascii() for line in lines)


def test_watch_on_a_terminal_that_cannot_go_back_is_refused(states: Database) -> None:
    for command in ("status", "keys"):
        terminal = Terminal(states.dsn, command, "--watch", "0.1", TERM="dumb")
        assert "TERM is dumb" in terminal.read()
        assert terminal.exit_code() == USAGE
