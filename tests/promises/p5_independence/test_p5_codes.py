"""P5: a command may fail with what inturn itself raises: that is its own failure, and touches nobody else."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from support import shop
from support.database import Database, until
from support.place import ROOT
from support.roles import APPLIER

from inturn.applier import Applier, Command
from inturn.schema import errors
from inturn.schema.errors import InturnError

#: With these a command asks for something.
_ASKED = {"IT020", "IT021", "IT022", "IT023"}
_HEALTHY = 20
#: A command's own code, at once; or by a trigger, when constraints are checked.
_MANNERS = ("now", "late")
_SCHEMA = """
    CREATE FUNCTION app.raise_late() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION USING ERRCODE = right(NEW.name, 5), MESSAGE = NEW.name; END $$;
    CREATE CONSTRAINT TRIGGER raise_late AFTER INSERT ON app.witness DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (NEW.name LIKE 'late %') EXECUTE FUNCTION app.raise_late();
    CREATE FUNCTION app.do_one(key text, seq bigint, name text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF name LIKE 'now %' THEN
            RAISE EXCEPTION USING ERRCODE = right(name, 5), MESSAGE = name;
        END IF;
        INSERT INTO app.witness (key, seq, name) VALUES (key, seq, name);
    END $$;
    CREATE FUNCTION app.raise_any(command inturn.command) RETURNS void LANGUAGE sql AS
        'SELECT app.do_one(command.key, command.seq, command.name)';
"""
_DO = "SELECT app.do_one(%s, %s, %s)"


def codes() -> list[str]:
    """Return every SQLSTATE of inturn: those that it tells, and those by which it finds its own way back."""
    found = set()
    for path in (*(ROOT / "schema").rglob("*.sql"), ROOT / "schema" / "errors.py"):
        found |= set(re.findall(r"\bIT\d{3}\b", path.read_text("utf-8")))
    return sorted(found - _ASKED)


def test_p5_the_codes_of_inturn_are_found() -> None:
    assert {"IT000", "IT012", "IT013", "IT030", "IT999"} <= set(codes())


def _kinds(base: type[InturnError] = InturnError) -> Iterator[type[InturnError]]:
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
        yield from _kinds(kind)


@pytest.fixture
def raising(database: Database) -> Database:
    """A key for each code and manner, among healthy ones: what fails is held at once."""
    shop.open_shop(database, settings="max_attempts => 1")
    database.execute(_SCHEMA)
    names = [f"{manner} {code}" for code in codes() for manner in _MANNERS]
    _append(database, names)
    shop.append_keys(database, _HEALTHY)
    return database


def _append(database: Database, names: list[str]) -> None:
    database.execute("SELECT inturn.append_many('shop', %s::text[], %s::text[])", [names, names])


def _await_end(database: Database, failing: int) -> None:
    until(lambda: shop.count_applied(database) == _HEALTHY, "the healthy keys")
    held = "SELECT count(*) FROM inturn.key_mark WHERE held_at IS NOT NULL"
    until(lambda: database.value(held) == failing, "the others are held")
    assert shop.count_applied(database) == _HEALTHY


def _check(database: Database) -> None:
    """Make sure that each key has its own error and no other, and that nobody else was touched."""
    of_codes = len(codes()) * len(_MANNERS)
    _await_end(database, of_codes)
    outcomes = database.execute("SELECT key, outcome, error FROM inturn.turn WHERE outcome <> 'applied'")
    assert {outcome for _, outcome, _ in outcomes} == {"held"}
    assert len(outcomes) == of_codes
    assert [key for key, _, error in outcomes if key not in error.partition("\n")[0]] == []


@pytest.mark.parametrize("careful", [0, 1000], ids=["together", "alone"])
def test_p5_a_sql_target_under_call_raises_codes_of_inturn(raising: Database, careful: int) -> None:
    raising.execute("SELECT inturn.set_topic('shop', target => 'sql:app.raise_any')")
    with raising.connect(user=APPLIER) as session:
        session.execute(f"SET inturn.careful_keys = {careful}")
        session.execute("CALL inturn.apply()")
    _check(raising)


@pytest.mark.parametrize("steady", [True, False], ids=["at work", "just started"])
@pytest.mark.parametrize("target", ["sql:app.raise_any", "python"])
def test_p5_commands_raise_codes_of_inturn(raising: Database, target: str, *, steady: bool) -> None:
    applier = Applier()

    def do(connection: psycopg.Connection[Any], command: Command) -> None:
        connection.execute(_DO, (command.key, command.seq, command.name))

    if target == "python":
        applier.handler(shop.TOPIC)(do)
    else:
        raising.execute("SELECT inturn.set_topic('shop', target => %s)", [target])
    with shop.at_work(raising, applier, steady=steady, workers=2) as fleet:
        _check(raising)
        assert fleet.running


@pytest.mark.parametrize("code", ["IT012", "IT013", "IT030"])
def test_p5_a_trigger_that_speaks_for_its_topic_is_not_believed(database: Database, code: str) -> None:
    """It fails the end of a batch with what a topic is refused with, or a turn."""
    shop.open_shop(database, settings="max_attempts => 1")
    database.execute(_SCHEMA)
    _append(database, [f"late {code}"])
    shop.append_keys(database, _HEALTHY)
    applier = Applier()

    @applier.handler(shop.TOPIC)
    def do(connection: psycopg.Connection[Any], command: Command) -> None:
        connection.execute(_DO, (command.key, command.seq, command.name))

    with shop.at_work(database, applier, workers=1) as fleet:
        _await_end(database, 1)
        assert fleet.running


@pytest.mark.parametrize("way", ["inside", "just started", "outside", "coroutine"])
def test_p5_handlers_raise_errors_of_inturn(database: Database, way: str) -> None:
    """As when they use it in another database, which may lack the schema, or have another one."""
    shop.open_shop(database, settings="max_attempts => 1")
    database.execute(_SCHEMA)
    kinds = {kind.__name__: kind for kind in _kinds()}
    assert {"SchemaMismatch", "OwnerChanged", "Fenced"} <= kinds.keys()
    _append(database, list(kinds))
    shop.append_keys(database, _HEALTHY)
    applier = Applier()

    def do(command: Command) -> None:
        if command.name in kinds:
            raise kinds[command.name](f"{command.name} said")
        with database.connect(user=APPLIER) as connection:
            connection.execute(_DO, (command.key, command.seq, command.name))

    if way == "coroutine":

        @applier.handler(shop.TOPIC, outside=True)
        async def do_it(command: Command) -> None:
            await asyncio.sleep(0)
            do(command)

    elif way == "outside":
        applier.handler(shop.TOPIC, outside=True)(do)
    else:
        applier.handler(shop.TOPIC)(lambda _, command: do(command))
    with shop.at_work(database, applier, steady=way != "just started", workers=2) as fleet:
        _await_end(database, len(kinds))
        assert fleet.running
    marks = "SELECT key, last_error FROM inturn.key_mark WHERE held_at IS NOT NULL"
    assert [key for key, error in database.execute(marks) if f"{key} said" not in error] == []


def test_p5_merge_functions_raise_codes_of_inturn(database: Database) -> None:
    """What could not be merged is taken as it is: nothing takes effect with a payload that nobody gave."""
    shop.open_shop(database, target="sql")
    database.execute("""
        CREATE TABLE app.paid (key text, payload jsonb); GRANT INSERT ON app.paid TO PUBLIC;
        CREATE FUNCTION app.pay(command inturn.command) RETURNS void LANGUAGE sql AS
            'INSERT INTO app.paid VALUES (command.key, command.payload)';
        CREATE FUNCTION app.both(a inturn.command, b inturn.command) RETURNS jsonb LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION USING ERRCODE = a.key, MESSAGE = 'not ' || a.key; END $$;
        SELECT inturn.set_topic('shop', target => 'sql:app.pay');
        SELECT inturn.merge_rule('shop', 'pay', 'pay', 'sql:app.both')""")
    for code in codes():
        database.execute("SELECT inturn.append('shop', %s, 'pay', '{}') FROM generate_series(1, 2)", [code])
    with database.connect(user=APPLIER) as session:
        while database.value("SELECT count(*) FROM inturn.ticket"):
            session.execute("CALL inturn.apply()")
    paid = "SELECT key, count(*), bool_and(payload = '{}') FROM app.paid GROUP BY 1 ORDER BY 1"
    assert database.execute(paid) == [(code, 2, True) for code in codes()]
    said = "SELECT key FROM inturn.turn WHERE error LIKE '%%: not ' || key || ' (SQLSTATE ' || key || ')%%'"
    assert sorted({key for (key,) in database.execute(said, [])}) == codes()
