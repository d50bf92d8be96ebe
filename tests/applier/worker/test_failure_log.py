"""Equal failures are logged a few times, and then counted; nobody's count is lost."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pytest
from support.b_server import TOPIC, B, Post, answer, open_topic, put_keys
from support.database import Database, until
from support.shop import steady_workers

from inturn.applier import Applier, Fleet
from inturn.applier.process import failure_log
from inturn.applier.process.failure_log import MOST_EQUAL, MOST_KINDS, FailureLog

KEYS = 60
_FAILED = "command failed"


def _of_a_key(number: int, error: str = "ValueError: refused") -> tuple[int, str, str, dict[str, object]]:
    return logging.WARNING, _FAILED, f"{error}\n\nTraceback ...", {"topic": "t", "key": f"k{number}"}


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [record.getMessage() for record in caplog.records]
    # A service that refuses asks for the key to be held.
    return [line for line in said if _FAILED in line or "key held" in line]


def _counted(lines: list[str]) -> int:
    """Return of how many failures these lines tell."""
    return sum(int(more[1]) if (more := re.match(r"(\d+) more: ", line)) else 1 for line in lines)


@pytest.fixture(autouse=True)
def never_due(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """However long a test takes, what is counted is said at the end."""
    monkeypatch.setattr(failure_log, "SAY_SECONDS", 3600.0)
    caplog.set_level(logging.INFO, "inturn.applier")


def test_5000_equal_failures_are_a_few_lines_and_their_count(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog()
    for number in range(5000):
        failures.log(*_of_a_key(number))
    failures.say(everything=True)
    lines = _said(caplog)
    assert len(lines) == MOST_EQUAL + 1
    assert lines[0] == "command failed: ValueError: refused"
    assert lines[-1] == f"{5000 - MOST_EQUAL} more: command failed, with the same error: ValueError: refused"
    keys = [vars(record)["key"] for record in caplog.records[:MOST_EQUAL]]
    assert keys == [f"k{n}" for n in range(MOST_EQUAL)]
    assert vars(caplog.records[-1])["topic"] == "t"


def test_5000_different_failures_are_a_bounded_number_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Errors often name a key or a number."""
    failures = FailureLog()
    for number in range(5000):
        failures.log(*_of_a_key(number, f"ValueError: refused {number}"))
    failures.say(everything=True)
    lines = _said(caplog)
    assert len(lines) == MOST_KINDS + MOST_EQUAL + 1
    assert lines[-1].endswith(
        "more: command failed, with other errors, the last one: ValueError: refused 4999"
    )
    assert _counted(lines) == 5000


def test_other_failures_are_logged_beside_equal_ones(caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog()
    for number in range(100):
        failures.log(*_of_a_key(number))
    for level, what, error, extra in (
        _of_a_key(1, "KeyError: 'x'"),
        (logging.WARNING, "command failed, its key is held", "ValueError: refused", {"topic": "t"}),
        (logging.WARNING, _FAILED, "ValueError: refused", {"topic": "other"}),
    ):
        failures.log(level, what, error, extra)
    assert len(_said(caplog)) == MOST_EQUAL + 3


def test_what_is_counted_is_said_again_and_again_while_it_lasts(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = FailureLog()
    for number in range(MOST_EQUAL + 5):
        failures.log(*_of_a_key(number))
    failures.say()
    assert _counted(_said(caplog)) == MOST_EQUAL
    monkeypatch.setattr(failure_log, "SAY_SECONDS", 0.0)
    failures.say()
    assert _counted(_said(caplog)) == MOST_EQUAL + 5
    failures.log(*_of_a_key(1))
    assert _counted(_said(caplog)) == MOST_EQUAL + 5, "it lasts, so it is counted"
    failures.say()
    assert _said(caplog)[-1].startswith("1 more: ")
    failures.say()  # there was none since
    failures.log(*_of_a_key(1))
    assert _said(caplog)[-1] == "command failed: ValueError: refused", "new again"


async def _refuse(_: Post, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(400, b"refused"))


def _handlers(way: str) -> Applier:
    applier = Applier()

    def fail(*_: Any) -> None:
        raise ValueError("refused")

    async def fail_later(_: Any) -> None:
        await asyncio.sleep(0)
        fail()

    if way in {"inside", "just started", "sql"}:
        applier.handler(TOPIC, "insert")(fail)
        applier.handler(TOPIC)(lambda *_: fail())  # another handler of the same topic
    elif way == "in batches":
        applier.batch_handler(TOPIC)(fail)
    elif way == "outside":
        applier.handler(TOPIC, outside=True)(fail)
    elif way == "coroutine":
        applier.handler(TOPIC, outside=True)(fail_later)
    return applier


@pytest.mark.each_value
@pytest.mark.parametrize("of", ["many keys", "one key", "different handlers"])
@pytest.mark.parametrize("way", ["inside", "just started", "in batches", "outside", "coroutine", "http"])
def test_equal_failures_are_bounded_in_every_kind_of_worker(
    database: Database, caplog: pytest.LogCaptureFixture, way: str, of: str
) -> None:
    with B(_refuse) as b:
        attempts, then = (KEYS, "skip") if of == "one key" else (1, "hold")
        settings = (
            f"max_attempts => {attempts}, on_exhausted => '{then}',"
            " backoff_base => '1 ms', backoff_cap => '1 ms'"
        )
        open_topic(database, b.url if way == "http" else "python", settings)
        put_keys(database, 1 if of == "one key" else KEYS)
        if of == "different handlers":
            database.execute("UPDATE inturn.command_log SET name = 'other' WHERE key LIKE '%%2'")
        fleet = Fleet(database.applier_dsn, _handlers(way), workers=2)
        if way == "just started":
            fleet.start()
        else:
            with steady_workers():
                fleet.start()
        until(
            lambda: not database.value("SELECT count(*) FROM inturn.key_cursor WHERE ready_at IS NOT NULL"),
            "all have failed",
        )
        failures = fleet.end(10).failures
    lines = _said(caplog)
    assert failures >= (1 if way == "http" and of == "one key" else KEYS)
    assert _counted(lines) == failures
    # Those of a key end with one that says that it is held, or skipped.
    assert len(lines) <= 2 * (MOST_EQUAL + 1)
