"""A package that meets a schema it cannot serve says so in one line, with a remedy."""

from __future__ import annotations

import pytest
from support.database import Database, set_revision

from inturn.schema import HEAD, check_version
from inturn.schema.errors import SchemaMismatch
from inturn.schema.version import installed_version


def test_its_own_revision_is_served(database: Database) -> None:
    connection = database.connect()
    assert installed_version(connection) == HEAD
    check_version(connection)


def test_without_an_installation_it_names_the_database_and_the_remedy(
    empty_database: Database,
) -> None:
    with pytest.raises(SchemaMismatch) as refused:
        check_version(empty_database.connect())
    assert str(refused.value) == (
        f"schema inturn is not installed in database {empty_database.name}. Install it with: inturn upgrade"
    )


@pytest.mark.parametrize(
    ("revision", "said", "remedy"),
    [
        ("0000", "older than", "inturn upgrade"),
        ("9999", "newer than", "pip install --upgrade inturn"),
    ],
)
def test_another_revision_is_named_with_the_remedy(
    database: Database, revision: str, said: str, remedy: str
) -> None:
    set_revision(database, revision)
    with pytest.raises(SchemaMismatch) as refused:
        check_version(database.connect())
    line = str(refused.value)
    assert f"schema inturn is at revision {revision}, {said} the {HEAD}" in line
    assert line.endswith(remedy)
    assert "\n" not in line


def test_it_looks_at_the_schema_it_was_told(database: Database) -> None:
    with pytest.raises(SchemaMismatch, match="schema elsewhere is not installed"):
        check_version(database.connect(), "elsewhere")


def test_a_name_is_never_read_as_sql(database: Database) -> None:
    assert installed_version(database.connect(), 'x" (; DROP SCHEMA inturn CASCADE; --') is None
    assert installed_version(database.connect()) == HEAD
