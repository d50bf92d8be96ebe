"""Merging, by every way of applying: a target of each kind, and a client that claims by lease in SQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import merging, shop
from support.database import Database, until
from support.subjects import KINDS, TOPIC, Subject, open_topic

from inturn.applier import Fleet
from inturn.schema.errors import OwnerChanged

RULES = (
    ("insert", "update", "sql:app.combine"),
    ("update", "update", "last"),
    ("insert", "delete", "nothing"),
    ("flaky", "flaky", "last"),
    ("insert", "bad", "sql:app.explode"),
    ("insert", "void", "sql:app.void"),
)


@pytest.fixture(params=KINDS)
def subject(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> Iterator[Subject]:
    """A target, its topic with merge rules, and nothing appended."""
    with KINDS[request.param](tmp_path) as subject:
        open_topic(database, subject)
        database.execute("""
            CREATE FUNCTION app.combine(a inturn.command, b inturn.command) RETURNS jsonb
                LANGUAGE sql IMMUTABLE AS $$ SELECT a.payload || b.payload $$;
            CREATE FUNCTION app.explode(a inturn.command, b inturn.command) RETURNS jsonb
                LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no way'; END $$;
            CREATE FUNCTION app.void(a inturn.command, b inturn.command) RETURNS jsonb
                LANGUAGE sql AS $$ SELECT NULL::jsonb $$;
        """)
        for rule in RULES:
            database.execute("SELECT inturn.merge_rule(%s, %s, %s, %s)", [TOPIC, *rule])
        yield subject


def _applied(database: Database) -> bool:
    return not database.value("SELECT count(*) FROM inturn.ticket")


@pytest.mark.each_value
@pytest.mark.parametrize("subject", KINDS, indirect=True)
@pytest.mark.parametrize("steady", [True, False], ids=["together", "alone"])
def test_what_is_merged_takes_effect_once_and_under_the_last_number(
    database: Database, subject: Subject, steady: bool
) -> None:
    merging.append(database, "one", "insert", "update", "update", "note", "update", "update")
    merging.append(database, "none", "insert", "delete")
    merging.append(database, "end", "note", "insert", "delete")
    merging.append(database, "middle", "insert", "delete", "note", "insert", "update", "delete", "note")
    merging.append(database, "plain", "note", "note")
    with shop.at_work(database, subject.handlers, steady=steady):
        until(lambda: _applied(database), "all of them")
    expected = {"one": [3, 4, 6], "none": [], "end": [1], "middle": [3, 7], "plain": [1, 2]}
    assert {key: subject.effects(database, key) for key in expected} == expected
    assert merging.merges(database, "one") == [(1, 3), (2, 3), (3, 3), (5, 6), (6, 6)]
    assert merging.merges(database, "none") == [(1, None), (2, None)]
    assert merging.merges(database, "end") == [(2, None), (3, None)]
    assert merging.merges(database, "middle") == [(n, None) for n in (1, 2, 4, 5, 6)]
    assert merging.violations(database) == []


def test_what_fails_as_merged_is_taken_as_it_stands(database: Database, subject: Subject) -> None:
    merging.append(database, "a", "note", "flaky", "flaky", "insert", "update")
    with shop.at_work(database, subject.handlers):
        until(lambda: _applied(database), "all of it")
    seen = subject.effects(database, "a")
    # Within the database the turn goes on with them at once; outside the key waits for its next attempt.
    assert seen[:3] == [1, 2, 3]
    assert seen[-1] == 5
    assert (2, 3) not in merging.merges(database, "a")
    assert merging.violations(database) == []


@pytest.mark.each_value
@pytest.mark.parametrize("subject", KINDS, indirect=True)
@pytest.mark.parametrize("name", ["bad", "void"])
def test_what_cannot_be_merged_is_charged_to_its_key_and_taken_as_it_stands(
    database: Database, subject: Subject, name: str
) -> None:
    merging.append(database, "a", "insert", name)
    merging.append(database, "b", "insert", "update")
    with shop.at_work(database, subject.handlers):
        until(lambda: _applied(database), "both")
    assert subject.effects(database, "a") == [1, 2]
    assert subject.effects(database, "b") == [2]
    failed = database.execute("SELECT key, outcome, error FROM inturn.turn WHERE error IS NOT NULL")
    assert [(key, outcome) for key, outcome, _ in failed] == [("a", "retrying")]
    assert "commands 1 and 2 could not be merged by sql:app." in failed[0][2]
    assert merging.merges(database, "a") == []
    assert merging.violations(database) == []


@pytest.mark.each_value
@pytest.mark.parametrize("subject", KINDS, indirect=True)
@pytest.mark.parametrize("steady", [True, False], ids=["together", "alone"])
def test_a_function_that_changed_hands_leaves_the_topic_out_and_charges_nobody(
    database: Database, subject: Subject, steady: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inturn.applier.inside.visits.STARTS_CAREFULLY", not steady)
    merging.append(database, "one", "insert", "update")
    other = f"other_{database.name}"
    database.administer(f"CREATE ROLE {other}")
    database.administer(
        f"ALTER FUNCTION app.combine(inturn.command, inturn.command) OWNER TO {other};"
        f" GRANT USAGE ON SCHEMA app TO {other}"
    )
    fleet = Fleet(database.applier_dsn, subject.handlers, drain=True)
    fleet.start()
    assert fleet.wait(60)
    assert isinstance(fleet.end(1).error, OwnerChanged)
    assert subject.effects(database, "one") == []
    assert database.execute("SELECT applied_seq, attempts, epoch FROM inturn.key_cursor") == [(0, 0, 0)]
    database.execute("SELECT inturn.merge_rule(%s, %s, %s, %s)", [TOPIC, *RULES[0]])
    with shop.at_work(database, subject.handlers, steady=steady):
        until(lambda: _applied(database), "all of it")
    assert subject.effects(database, "one") == [2]
    assert merging.violations(database) == []
