"""list_keys: at how many keys it looks where no index has what is asked for, and that it says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from support.crowd_of_keys import FEW, STATES, crowd_of_keys
from support.database import Database
from support.plans import cost
from support.race import replaced
from support.roles import OWNER
from support.server import Server


@pytest.fixture(scope="module")
def shop(server: Server, template: str) -> Iterator[Database]:
    """5,000 ready keys, and few in every other state."""
    database = crowd_of_keys(server, template, "list_bounds", ready=5_000)
    database.execute("VACUUM ANALYZE")
    yield database
    database.drop()


@pytest.fixture(scope="module")
def connection(shop: Database) -> psycopg.Connection[Any]:
    return shop.connect(user=OWNER)


def _listed(connection: psycopg.Connection[Any], arguments: str) -> tuple[list[str], list[str]]:
    """Return the keys, and the warnings."""
    said: list[str] = []

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        said.append(diagnostic.message_primary or "")

    connection.add_notice_handler(note)
    rows = connection.execute(f"SELECT key FROM inturn.list_keys({arguments})".encode()).fetchall()
    connection.remove_notice_handler(note)
    return [key for (key,) in rows], said


def test_idle_keys_that_a_pattern_does_not_match_count_as_looked_at(
    shop: Database, connection: psycopg.Connection[Any]
) -> None:
    """A pattern that matches next to none would walk over all keys, and once more for the warning."""
    arguments = "of_state => 'idle', of_like => '%nosuch'"
    query = f"SELECT FROM inturn.list_keys({arguments.replace('%', '%%')})"
    with replaced(shop, "list_keys", ("50000", "100")):
        keys, (warning,) = _listed(connection, arguments)
        assert keys == []
        assert warning.startswith("more than 100 keys in topic 'shop': idle ones were looked for among the")
        some = cost(connection, query)
    assert _listed(connection, arguments) == ([], [])
    assert cost(connection, query) > some + 20, "which looks at 5,000"


def test_idle_keys_are_looked_for_from_where_the_pattern_begins(
    shop: Database, connection: psycopg.Connection[Any]
) -> None:
    with replaced(shop, "list_keys", ("50000", "50")):
        for like, found in (("idle9_", 10), (r"id\le9_", 10), ("idle9%9", 1), ("idle99", 1), ("held9_", 0)):
            keys, said = _listed(connection, f"of_state => 'idle', of_like => '{like}'")
            assert (len(keys), said) == (found, []), like
        keys, said = _listed(connection, "of_state => 'idle', of_like => 'idle%'")
        assert len(keys) == 50, "it has found as many as it lists"
        assert said == []
        keys, said = _listed(connection, "of_state => 'idle', of_like => 'idle%0'")
        assert 0 < len(keys) < 10
        (warning,) = said
        assert warning.startswith(
            "more than 50 keys in topic 'shop' begin with 'idle': idle ones were looked for"
        )
        assert _listed(connection, "of_state => 'idle', of_like => '_dle9_'")[0] == [], "others come first"


def test_a_list_of_all_keys_has_all(shop: Database, connection: psycopg.Connection[Any]) -> None:
    with replaced(shop, "list_keys", (r"\b50000\b", "50"), (r"\b20000\b", "10")):
        for sort in ("NULL", "'lag'", "'age'", "'attempts'"):
            arguments = f"max_keys => NULL, of_state => 'held,idle', sort_by => {sort}"
            keys, said = _listed(connection, arguments)
            assert (len(keys), said) == (2 * FEW, []), sort


def test_a_filter_that_no_index_knows_looks_at_some_keys_of_each_state_and_says_so(
    shop: Database, connection: psycopg.Connection[Any]
) -> None:
    warning = "more than {0} {1} keys in topic 'shop': only the first {0} of each topic were looked at"
    filters = ("older_than => '1 h'", "min_lag => 2", "min_lag => 40", "of_error => 'x'")
    sorts = ("NULL", "'lag'", "'age'", "'attempts'")
    with replaced(shop, "list_keys", ("200000", "10")):
        for state in STATES[:-1]:
            for each in filters:
                for sort in sorts:
                    arguments = f"of_state => '{state}', max_keys => 5, sort_by => {sort}, {each}"
                    assert _listed(connection, arguments) == ([], [warning.format(10, state)]), arguments
        assert warning.format(10, "ready") in _listed(connection, "sort_by => 'lag', max_keys => 5")[1]
        deep = "SELECT FROM inturn.list_keys(of_state => 'ready', max_keys => 5, min_lag => 40)"
        quick = cost(connection, deep)
        # Nothing is said where as many are listed as were wanted, nor of other topics, nor without a filter.
        for arguments in ("older_than => '0 s', max_keys => 5", "'other', older_than => '1 h'", ""):
            assert _listed(connection, arguments)[1] == [], arguments
    assert _listed(connection, "min_lag => 40") == (["deep1"], [])
    assert cost(connection, deep) > 20 * quick


def test_a_filter_by_errors_costs_next_to_nothing_on_keys_without_one(
    connection: psycopg.Connection[Any],
) -> None:
    """What shortens them sets its search_path at each call, which takes longer than to find the key."""
    strict = "SELECT proisstrict FROM pg_proc WHERE oid = 'inturn._shorten(text,integer)'::regprocedure"
    assert connection.execute(strict).fetchone() == (True,)
