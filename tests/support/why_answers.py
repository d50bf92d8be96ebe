"""`why` asked in every way: the function, the command, as an operator."""

from __future__ import annotations

import json
import re
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg.rows import dict_row

from inturn.cli.look.why import TITLES
from support.database import Database, Session
from support.logins import connect_as
from support.place import DOCS
from support.process import run_inturn
from support.terminal import Terminal

Explained = dict[str, Any]

#: One who may do nothing else, of each database that was asked.
_operators: WeakKeyDictionary[Database, psycopg.Connection[Any]] = WeakKeyDictionary()
#: What changes a key, in what why advises.
_ACTS = re.compile(r"\binturn (retry|amend|skip|resume|fill-gap)\b|\b(inturn\.release)\b")
_COLUMNS = ("topic", "key", "cause", "since", "says", "to_do", "details")


def asked(database: Database, key: str, topic: str | None = "orders") -> Explained:
    """Return the one explanation."""
    (row,) = database.execute("SELECT * FROM inturn.why(%s, %s)", [topic, key])
    return dict(zip(_COLUMNS, row, strict=True))


def explained(database: Database, key: str, cause: str, topic: str = "orders") -> tuple[Explained, str]:
    """Ask in every way; return the function's answer, and what the command prints."""
    answer = asked(database, key, topic)
    assert answer["cause"] == cause, answer
    if database not in _operators:
        _operators[database] = connect_as(database, "inturn_operator")
    cursor = _operators[database].cursor(row_factory=dict_row)
    seen = cursor.execute("SELECT * FROM inturn.why(%s, %s)", [topic, key]).fetchone()
    assert seen is not None
    for column in ("cause", "since", "to_do"):
        assert seen[column] == answer[column], column
    assert backends(seen) == backends(answer)
    code, out, err = run_inturn(database.dsn, "why", key, "--topic", topic, "--json")
    assert (code, err) == (int(cause == "no_such_key"), "")
    (data,) = json.loads(out)
    assert (data["topic"], data["key"], data["cause"]) == (topic, key, cause)
    terminal = Terminal(database.dsn, "why", key, "--topic", topic)
    assert terminal.exit_code() == int(cause == "no_such_key")
    lines = terminal.printed.splitlines()
    out = "".join(f"{line}\n" for line in lines)
    assert lines[0].startswith(f"{key} of topic {topic}: {TITLES[cause]}")
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 80, out
    assert "{" not in out
    assert _advised(answer["to_do"]) <= _advised_on_the_page(cause)
    print(out)
    return answer, out


def _advised(text: str) -> set[str]:
    return {command or function for command, function in _ACTS.findall(text)}


def _advised_on_the_page(cause: str) -> set[str]:
    """Return what the page on the causes has to do about one."""
    page = (DOCS / "reference" / "keys.md").read_text("utf-8")
    (to_do,) = re.findall(rf"^\| (?:`\w+`, )?`{cause}`[^|]*\|.*\| ([^|]*) \|$", page, re.MULTILINE)
    return set(re.findall(r"`([\w.-]+)`", to_do))


def backends(answer: Explained) -> list[int]:
    return [session["backend"] for session in answer["details"].get("sessions", [])]


def caller_of(database: Database) -> Session:
    return database.session(application_name="web shop")
