"""P5: a migration of what handlers read is charged to no command."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from support import shop
from support.database import Database

from inturn.applier import Applier
from inturn.applier.inside.python_target import PythonTarget
from inturn.applier.process.connections import Connections
from inturn.applier.stop import Stop


class _Shelf:
    """Handlers that read a table, and what the database said when that was altered."""

    def __init__(self) -> None:
        self.applier = Applier()
        self.said: list[str] = []

    def single(self, connection: Any, command: Any) -> None:
        shop.write_witness(connection, command)
        try:
            connection.execute("SELECT * FROM app.shelf")
        except psycopg.errors.FeatureNotSupported as error:
            self.said.append(str(error).partition("\n")[0])
            raise ValueError("cannot read the shelf") from error

    def batch(self, connection: Any, commands: list[Any]) -> None:
        for command in commands:
            self.single(connection, command)


@pytest.mark.needs_session("the driver prepares nothing through a pooler")
@pytest.mark.parametrize("way", ["a handler", "a batch handler", "alone"])
def test_p5_a_migration_of_a_table_that_handlers_read_is_no_failed_attempt(
    database: Database, way: str
) -> None:
    """The driver prepares what runs often, and the database refuses that once a column has come."""
    shop.open_shop(database, settings="max_attempts => 1")
    database.execute("CREATE TABLE app.shelf (n integer)")
    shelf = _Shelf()
    if way == "a batch handler":
        shelf.applier.batch_handler(shop.TOPIC)(shelf.batch)
    else:
        shelf.applier.handler(shop.TOPIC)(shelf.single)
    target = PythonTarget(shop.TOPIC, shelf.applier, Stop(), "inturn", "me")
    with Connections(database.applier_dsn, 5).connect() as connection:
        for column in (None,) * 6 + ("one", "other"):
            if column:
                database.execute(f"ALTER TABLE app.shelf ADD COLUMN {column} integer")
            shop.append(database, "k", "insert", "insert")
            if way == "alone":
                batch = target.apply_alone(connection, "-infinity")
            else:
                batch = target.apply_batch(connection, "-infinity", 50)
            assert (batch.keys, batch.commands, batch.failures) == (1, 2, 0)
    assert shelf.said == ["cached plan must not change result type"]
    assert database.execute("SELECT DISTINCT outcome FROM inturn.turn") == [("applied",)]
    shop.assert_once_and_in_turn(database)


@pytest.mark.needs_session("the driver prepares nothing through a pooler")
def test_p5_a_handler_that_reads_what_was_altered_for_ever_is_charged(database: Database) -> None:
    """As one does whose own connection is never rolled back: it is called twice, and no more."""
    shop.open_shop(database, settings="max_attempts => 1")
    database.execute("CREATE TABLE app.shelf (n integer)")
    applier, calls = Applier(), []
    own = psycopg.connect(database.applier_dsn, autocommit=True, prepare_threshold=0)
    own.execute("PREPARE shelf AS SELECT * FROM app.shelf")

    @applier.handler(shop.TOPIC)
    def read(_: Any, command: Any) -> None:
        calls.append(command.seq)
        own.execute("EXECUTE shelf")

    target = PythonTarget(shop.TOPIC, applier, Stop(), "inturn", "me")
    with own, Connections(database.applier_dsn, 5).connect() as connection:
        own.execute("EXECUTE shelf")
        database.execute("ALTER TABLE app.shelf ADD COLUMN one integer")
        shop.append(database, "k", "insert")
        assert target.apply_batch(connection, "-infinity", 50).failures == 1
    assert calls == [1, 1]
    assert database.value("SELECT held_at IS NOT NULL FROM inturn.key_mark")
