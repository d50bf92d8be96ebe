"""How a handler's exception is recorded: whole, bounded, and always storable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from support.database import Database
from support.shop import TOPIC, append, applied, apply_all, open_shop, write_witness

from inturn.applier import Applier, Command
from inturn.applier.failure import MAX_ERROR_CHARACTERS, describe, on_one_line
from inturn.applier.process.totals import ended_by
from inturn.applier.verdict import Hold, Outage, Retry, Skip, Verdict
from inturn.cli.errors import explain


class _Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def _chain() -> Exception:
    return _caused(RuntimeError("at the end"), _caused(ValueError("in between"), KeyError("root cause")))


def _endless() -> Exception:
    error: Exception = ValueError("0")
    for number in range(1, 300):
        error = _caused(ValueError(str(number)), error)
    return error


#: What a handler may raise, and what of it must be found in the record.
ERRORS: dict[str, tuple[Exception, str]] = {
    "plain": (ValueError("plain words"), "plain words"),
    "empty": (ValueError(), "ValueError"),
    "NUL": (ValueError("a\0b"), r"a\x00b"),
    "lone surrogate": (ValueError("a\ud800b\udfff"), r"a\ud800b\udfff"),
    "ten megabytes": (ValueError("x" * 10_000_000), "ValueError: xxx"),
    "multibyte at every cut": (ValueError("\N{GRINNING FACE}" * 20_000), "\N{GRINNING FACE}"),
    "NULs by the thousand": (ValueError("\0" * 20_000), r"\x00\x00"),
    "surrogates at every cut": (ValueError("é\ud83d" * 20_000), r"é\ud83d"),
    "control characters": (ValueError("\x1b[31mred\r\n\t\x7f"), "\x1b[31mred"),
    "chain": (_chain(), "KeyError: 'root cause'"),
    "long chain": (_endless(), "ValueError"),
    "group": (ExceptionGroup("several", [ValueError("one"), KeyError("two")]), "ValueError: one"),
    "no words": (_Unspeakable(), "_Unspeakable"),
    "percent and quotes": (ValueError("100%s 'quoted' \\x \"double\" $1"), "100%s 'quoted' \\x"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_any_error_becomes_text_that_the_database_takes(kind: str) -> None:
    error, expected = ERRORS[kind]
    text = describe(error)
    assert expected in text
    assert len(text) <= MAX_ERROR_CHARACTERS
    assert "\0" not in text
    text.encode()


def test_the_text_begins_with_what_the_error_says_and_ends_with_its_traceback() -> None:
    text = describe(_chain())
    assert text.startswith("RuntimeError: at the end\n")
    assert text.index("root cause") < text.index("in between") < text.rindex("at the end")
    assert "The above exception was the direct cause" in text


def test_a_long_text_loses_its_middle_and_says_how_much() -> None:
    text = describe(ValueError("begin" + "x" * 100_000 + "end"))
    assert text.startswith("ValueError: begin")
    assert text.endswith("end")
    assert len(text) == MAX_ERROR_CHARACTERS
    assert "characters left out" in text


def test_any_error_is_recorded_and_the_worker_lives(database: Database) -> None:
    open_shop(database, settings="max_attempts => 1")
    handlers = Applier()

    @handlers.handler(TOPIC, "fail")
    def fail(connection: psycopg.Connection[Any], command: Command) -> None:
        raise ERRORS[command.key][0]

    handlers.handler(TOPIC)(write_witness)
    for kind in ERRORS:
        append(database, kind, "fail")
        append(database, f"beside {kind}", "insert")
    outcome = apply_all(database, handlers)
    assert (outcome.failures, outcome.held) == (len(ERRORS), len(ERRORS))
    for kind, (_, expected) in ERRORS.items():
        for column, table in (("last_error", "key_cursor"), ("error", "turn")):
            ((text,),) = database.execute(f"SELECT {column} FROM inturn.{table} WHERE key = %s", [kind])
            assert expected in text, kind
            assert len(text) <= MAX_ERROR_CHARACTERS, kind
        assert applied(database, f"beside {kind}") == [1]


def test_an_error_of_a_sql_target_is_recorded_with_its_state_and_bounded(database: Database) -> None:
    database.execute("""
        CREATE SCHEMA app;
        CREATE FUNCTION app.apply(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION USING ERRCODE = 'AB123', DETAIL = 'more', HINT = 'help',
                MESSAGE = repeat(E'\U0001f600', (command.payload ->> 'length')::int);
        END $$;
        SELECT inturn.create_topic('shop', 'sql:app.apply', max_attempts => 1);
    """)
    for length in (10, 7_999, 8_000, 8_001, 1_000_000):
        database.execute(
            "SELECT inturn.append('shop', %s, 'fail', jsonb_build_object('length', %s::int))",
            [str(length), length],
        )
    database.execute("CALL inturn.apply()")
    texts = dict(database.execute("SELECT key, last_error FROM inturn.key_cursor"))
    assert texts == dict(database.execute("SELECT key, error FROM inturn.turn"))
    for length, text in texts.items():
        assert text.startswith("\N{GRINNING FACE}" * min(int(length), 8000)), length
        assert len(text) <= 8000, length
    for part in ("(SQLSTATE AB123)", "DETAIL: more", "HINT: help", "CONTEXT: PL/pgSQL function app.apply"):
        assert part in texts["10"]
    assert len(texts) == 5


class _UnspeakableEnd(BaseException):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_error_without_words_is_called_by_its_kind_wherever_it_is_said() -> None:
    """Its connection broke, or it has ended a worker: what said so died of that, and the worker unseen."""
    assert on_one_line(_Unspeakable()) == "_Unspeakable"
    assert "_UnspeakableEnd" in str(ended_by(_UnspeakableEnd()))
    assert explain(_Unspeakable())[0].startswith("internal error: _Unspeakable")


@pytest.mark.parametrize("verdict", [Retry, Outage, Hold, Skip])
def test_an_error_is_a_reason_too(verdict: Callable[[object], Verdict]) -> None:
    """Otherwise what is raised is an AttributeError, which an outage would count as an attempt."""
    assert verdict(ConnectionError("the bank is down")).reason == "the bank is down"
