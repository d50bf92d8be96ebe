"""P5: a merge that hangs is ended with its topic's timeout, and charged to its own key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import merging, shop
from support.database import Database, until
from support.subjects import KINDS, TOPIC, Subject, open_topic


@pytest.fixture(params=["sql", "python", "python outside"])
def subject(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> Iterator[Subject]:
    """A target whose topic has a merge function that never ends."""
    with KINDS[request.param](tmp_path) as subject:
        open_topic(database, subject)
        database.execute("""
            CREATE FUNCTION app.hang(a inturn.command, b inturn.command) RETURNS jsonb
                LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(600); RETURN a.payload; END $$;
            SELECT inturn.merge_rule('orders', 'insert', 'update', 'sql:app.hang');
            SELECT inturn.set_topic('orders', timeout => '1500 ms');
        """)
        yield subject


@pytest.mark.parametrize("steady", [True, False], ids=["together", "alone"])
def test_p5_a_merge_that_hangs_is_charged_to_its_key(
    database: Database, subject: Subject, steady: bool
) -> None:
    for key in ("bad", "worse"):
        merging.append(database, key, "insert", "update")
    for number in range(10):
        merging.append(database, f"k{number}", "insert", "note")
    with shop.at_work(database, subject.handlers, steady=steady) as fleet:
        until(lambda: not database.value("SELECT count(*) FROM inturn.ticket"), "all keys", 60)
        assert fleet.running
    for key in ("bad", "worse", *(f"k{number}" for number in range(10))):
        assert subject.effects(database, key) == [1, 2]
    failed = database.execute("SELECT DISTINCT key FROM inturn.turn WHERE error IS NOT NULL")
    assert {key for (key,) in failed} <= {"bad", "worse"}
    error = database.value("SELECT max(error) FROM inturn.turn WHERE error IS NOT NULL")
    assert "could not be merged by sql:app.hang" in error
    assert merging.merges(database, "bad") == []
    assert merging.violations(database, TOPIC) == []
