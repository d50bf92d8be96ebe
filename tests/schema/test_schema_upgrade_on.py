"""Installing and upgrading in a transaction of somebody else's, as in a migration of a service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from support.database import Database
from support.dump import dump
from support.next_release import NEXT, NextRelease

from inturn.schema.errors import SchemaMismatch, SchemaNameRefused, TransactionNeeded
from inturn.schema.install import upgrade, upgrade_on, upgrade_script
from inturn.schema.privileges import Change
from inturn.schema.source import script, statements
from inturn.schema.version import HEAD


@pytest.fixture
def engine(empty_database: Database) -> Iterator[Engine]:
    """The service's own engine."""
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(empty_database.dsn), poolclass=NullPool
    )
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


def _is_there(database: Database) -> bool:
    return bool(database.value("SELECT to_regnamespace('inturn') IS NOT NULL"))


def test_it_is_committed_and_undone_with_the_service_s_own_work(
    empty_database: Database, connection: Connection, database: Database
) -> None:
    connection.execute(text("CREATE TABLE theirs (id integer)"))
    assert upgrade_on(connection) == (None, HEAD)
    assert not _is_there(empty_database), "nothing is committed yet"
    connection.rollback()
    assert not _is_there(empty_database)
    connection.execute(text("CREATE TABLE theirs (id integer)"))
    assert upgrade_on(connection) == (None, HEAD)
    connection.commit()
    assert dump(empty_database) == dump(database)
    assert upgrade_on(connection) == (HEAD, HEAD)
    connection.rollback()
    assert upgrade(empty_database.dsn) == (HEAD, HEAD)


def test_an_upgrade_from_the_release_before_is_undone_too(
    empty_database: Database, connection: Connection, tmp_path: Path
) -> None:
    upgrade(empty_database.dsn)
    before = dump(empty_database)
    with NextRelease(tmp_path).installed():
        assert upgrade_on(connection) == (HEAD, NEXT)
        connection.rollback()
        assert dump(empty_database) == before
        assert upgrade_on(connection) == (HEAD, NEXT)
        connection.commit()
    with pytest.raises(SchemaMismatch, match="newer than"):
        upgrade_on(connection)


def test_what_a_migration_grants_behind_it_stays_where_default_privileges_give_the_same(
    empty_database: Database, connection: Connection
) -> None:
    reader = f"reader_{empty_database.name}"
    empty_database.execute(
        f"CREATE ROLE {reader}; ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {reader}"
    )
    assert upgrade_on(connection) == (None, HEAD)
    connection.execute(text(f"GRANT SELECT ON inturn.turn TO {reader}"))
    connection.commit()
    changes: list[Change] = []
    upgrade(empty_database.dsn, report=changes.append)
    assert changes == []


def test_in_autocommit_it_is_refused_and_leaves_nothing(engine: Engine, empty_database: Database) -> None:
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(TransactionNeeded, match="in a transaction"),
    ):
        upgrade_on(connection)
    assert not _is_there(empty_database)


@pytest.mark.parametrize("name", ["in turn", "user"])
def test_a_name_that_cannot_be_used_is_refused(connection: Connection, name: str) -> None:
    with pytest.raises(SchemaNameRefused, match=name):
        upgrade_on(connection, schema=name)


def test_the_service_s_settings_neither_misdirect_it_nor_are_lost(
    empty_database: Database, connection: Connection, database: Database
) -> None:
    settings = {
        "search_path": "theirs, public",
        "quote_all_identifiers": "on",
        "standard_conforming_strings": "off",
    }
    # Whoever may create in the path could take over what runs as the one who migrates.
    connection.execute(
        text(
            "CREATE SCHEMA theirs; CREATE FUNCTION theirs.quote_ident(text) RETURNS text LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'taken over'; END $$"
        )
    )
    for name, value in settings.items():
        connection.execute(text("SELECT set_config(:name, :value, false)"), {"name": name, "value": value})
    upgrade_on(connection)
    for name, value in settings.items():
        assert connection.scalar(text("SELECT current_setting(:name)"), {"name": name}) == value
    connection.commit()
    assert dump(empty_database) == dump(database)


def test_the_script_without_a_transaction_is_a_part_of_another_one(
    empty_database: Database, database: Database
) -> None:
    part = upgrade_script(transaction=False)
    assert upgrade_script() == f"BEGIN;\n\n{part}\nCOMMIT;\n"
    with psycopg.connect(empty_database.dsn) as session:
        session.execute(part.encode())
        session.rollback()
        assert not _is_there(empty_database)
        for statement in statements(part):
            session.execute(statement.encode())
    assert dump(empty_database) == dump(database)


def test_every_statement_of_the_script_stands_alone_and_none_is_lost() -> None:
    parts = list(statements(script()))
    assert "".join("".join(parts).split()) == "".join(script().split())
    assert sum(part.count("CREATE FUNCTION") for part in parts) == script().count("CREATE FUNCTION")
    assert max(part.count("\nCREATE FUNCTION") for part in parts) == 1
