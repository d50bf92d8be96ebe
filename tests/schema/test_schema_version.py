"""A package that meets a schema it cannot serve says so in one line, with a remedy."""

from __future__ import annotations

import psycopg
import pytest
from support.database import Database, set_revision
from support.roles import CALLER, OWNER

from inturn.schema import HEAD, check_version
from inturn.schema.errors import SchemaMismatch
from inturn.schema.version import check_after, installed_version


def test_its_own_revision_is_served(database: Database) -> None:
    connection = database.connect(user=CALLER)
    assert installed_version(connection) == HEAD
    check_version(connection)


def test_without_an_installation_it_names_the_database_and_the_remedy(
    empty_database: Database,
) -> None:
    with pytest.raises(SchemaMismatch) as refused:
        check_version(empty_database.connect(user=OWNER))
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
        check_version(database.connect(user=CALLER))
    line = str(refused.value)
    assert f"schema inturn is at revision {revision}, {said} the {HEAD}" in line
    assert line.endswith(remedy)
    assert "\n" not in line


def test_it_looks_at_the_schema_it_was_told(database: Database) -> None:
    with pytest.raises(SchemaMismatch, match="schema elsewhere is not installed"):
        check_version(database.connect(user=OWNER), "elsewhere")


def test_a_name_is_never_read_as_sql(database: Database) -> None:
    assert installed_version(database.connect(user=OWNER), 'x" (; DROP SCHEMA inturn CASCADE; --') is None
    assert installed_version(database.connect(user=CALLER)) == HEAD


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT inturn.gone()",
        "SELECT FROM inturn.gone",
        "SELECT gone FROM inturn.topic",
        "SELECT nowhere.gone()",
        "SELECT NULL::inturn.gone",
    ],
)
def test_that_a_part_is_missing_is_put_down_to_an_upgrade_only_where_there_was_one(
    database: Database, statement: str
) -> None:
    connection = database.connect(user=OWNER)
    with pytest.raises(psycopg.Error) as refused:
        connection.execute(statement.encode())
    check_after(refused.value, connection)
    set_revision(database, "9999")
    with pytest.raises(SchemaMismatch, match="newer than"):
        check_after(refused.value, connection)
    database.execute("DROP SCHEMA inturn CASCADE")
    with pytest.raises(SchemaMismatch, match="not installed"):
        check_after(refused.value, connection)


def test_no_other_error_is_put_down_to_an_upgrade(database: Database) -> None:
    set_revision(database, "9999")
    connection = database.connect(autocommit=False, user=OWNER)
    with pytest.raises(psycopg.errors.DivisionByZero) as refused:
        connection.execute("SELECT 1 / 0")
    connection.rollback()
    check_after(refused.value, connection)
    check_after(ValueError("no function of ours"), connection)
    # What cannot be asked is left as it is.
    with pytest.raises(psycopg.errors.UndefinedFunction) as missing:
        connection.execute("SELECT inturn.gone()")
    check_after(missing.value, connection)
