"""What a target of every kind has to do; a toy of a kind of its own does it too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import shop
from support.database import Database, until
from support.place import DOCS
from support.process import run_inturn
from support.subjects import KINDS, TOPIC, Subject, open_topic

from inturn.applier import targets


@pytest.fixture(params=KINDS)
def subject(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> Iterator[Subject]:
    """A target, its topic, and nothing appended."""
    with KINDS[request.param](tmp_path) as subject:
        open_topic(database, subject)
        yield subject


def _append(database: Database, key: str, *names: str) -> None:
    database.execute(
        "SELECT inturn.append_many(%s, array_fill(%s::text, ARRAY[%s]), %s::text[])",
        [TOPIC, key, len(names), list(names)],
    )


def _state(database: Database, key: str) -> tuple[object, ...]:
    return database.execute(
        "SELECT inturn.key_state(c), applied_seq, attempts FROM inturn.key_cursor c WHERE key = %s", [key]
    )[0]


def test_each_key_s_commands_take_effect_in_order_and_once(database: Database, subject: Subject) -> None:
    for number in range(1, 11):
        _append(database, f"k{number}", *["insert"] * number)
    with shop.at_work(database, subject.handlers, workers=2):
        until(lambda: _state(database, "k10") == ("idle", 10, 0), "the longest")
        _append(database, "k10", "insert", "insert")
        until(lambda: _state(database, "k10")[1] == 12, "what came meanwhile")
        until(
            lambda: not database.value("SELECT count(*) FROM inturn.ticket"),
            "all of them",
        )
    for number in range(1, 10):
        assert subject.effects(database, f"k{number}") == list(range(1, number + 1))
    assert subject.effects(database, "k10") == list(range(1, 13))


def test_a_command_that_fails_is_tried_again_before_the_next_one(
    database: Database, subject: Subject
) -> None:
    _append(database, "a", "insert", "flaky", "insert")
    with shop.at_work(database, subject.handlers):
        until(lambda: _state(database, "a") == ("idle", 3, 0), "applied")
    assert subject.effects(database, "a") == [1, 2, 3]
    outcomes = "SELECT outcome FROM inturn.turn WHERE outcome NOT IN ('applied', 'idle')"
    assert database.execute(outcomes) == [("retrying",)]


def test_one_that_fails_for_good_holds_its_key_and_no_other(database: Database, subject: Subject) -> None:
    _append(database, "bad", "insert", "fail", "insert")
    for number in range(20):
        _append(database, f"k{number}", "insert")
    with shop.at_work(database, subject.handlers, workers=2):
        until(lambda: _state(database, "bad")[0] == "held", "held")
        waiting = "SELECT count(*) FROM inturn.ticket WHERE ready_at < 'infinity'"
        until(lambda: not database.value(waiting), "the others")
    assert _state(database, "bad") == ("held", 1, 2)
    assert "refused bad" in database.value("SELECT last_error FROM inturn.key_cursor WHERE key = 'bad'")
    assert subject.effects(database, "bad") == [1]
    assert all(subject.effects(database, f"k{number}") == [1] for number in range(20))
    assert database.execute("SELECT v.* FROM inturn.verify('orders') v") == []


def test_what_an_operator_skips_is_passed_over_and_the_rest_goes_on(
    database: Database, subject: Subject
) -> None:
    _append(database, "a", "fail", "insert")
    with shop.at_work(database, subject.handlers):
        until(lambda: _state(database, "a")[0] == "held", "held")
        database.execute("SELECT inturn.skip('orders', 'a', 1, 'a test')")
        until(lambda: _state(database, "a") == ("idle", 2, 0), "the rest")
    assert subject.effects(database, "a") == [2]


def test_an_applier_that_stops_leaves_the_rest_to_the_next_one(database: Database, subject: Subject) -> None:
    for round_ in range(1, 4):
        _append(database, "a", "insert")
        with shop.at_work(database, subject.handlers):
            until(lambda: _state(database, "a")[1] == round_, "applied")  # noqa: B023 - asked in this round
    assert subject.effects(database, "a") == [1, 2, 3]


def test_why_says_what_to_run_where_nobody_serves_it(database: Database, subject: Subject) -> None:
    _append(database, "a", "insert")
    code, out, _ = run_inturn(database.dsn, "why", "a")
    assert code == 0
    assert "no applier" in out
    assert (
        f"$ inturn apply {'--app MODULE:APPLIER ' if subject.target == 'python' else ''}--topic orders" in out
    )


def test_python_and_the_database_and_the_page_know_the_same_kinds(database: Database) -> None:
    kinds = dict(database.execute("SELECT kind, written FROM inturn._target_kinds()"))
    assert list(kinds) == list(targets.KINDS)
    (row,) = re.findall(r"^\| `target` \|.*", (DOCS / "reference" / "settings.md").read_text(), re.MULTILINE)
    for kind, written in kinds.items():
        assert all(f"`{form}`" in row for form in written.split(" and "))
        for begins in targets.KINDS[kind].begins:
            target = begins if kind == "python" else f"{begins}x"
            assert database.execute("SELECT kind FROM inturn._kind_of(%s)", [target]) == [(kind,)]
            name = database.value("SELECT inturn._function_name(%s)", [target])
            assert name == ("x" if kind == "sql" else None)
    assert database.execute("SELECT FROM inturn._kind_of('sql:')") == []
    assert database.value("SELECT inturn._function_name('sql:')") is None


def test_every_kind_is_in_this_suite() -> None:
    assert set(targets.KINDS) <= {re.split("[ ,]", name)[0] for name in KINDS}
