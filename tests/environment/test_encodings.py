"""Databases in LATIN1 and SQL_ASCII, and one that quotes all identifiers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from support.b_server import B, apply_all
from support.database import Database
from support.process import run_inturn
from support.roles import OWNER, THEIR_APP
from support.server import Server
from support.terminal import commands_of

from inturn.applier import Applier, Command
from inturn.cli.main import cli
from inturn.outbox import NewCommand, append, append_many
from inturn.schema.errors import CommandRefused
from inturn.schema.install import upgrade

_numbers = itertools.count(1)
_APP = """
    CREATE SCHEMA app; CREATE TABLE app.effect (id serial, key text, payload text);
    CREATE FUNCTION app.apply(command inturn.command) RETURNS void LANGUAGE sql
    AS 'INSERT INTO app.effect (key, payload) VALUES (command.key, command.payload::text)';
    CREATE FUNCTION app.fail(command inturn.command) RETURNS void LANGUAGE plpgsql
    AS 'BEGIN RAISE ''refused''; END'"""


def _database(server: Server, options: str) -> Iterator[Database]:
    name = f"encoded_{next(_numbers)}"
    with server.connect() as admin:
        admin.execute(f"CREATE DATABASE {name}_t TEMPLATE template0 {options}")
    database = Database(server, name, template=f"{name}_t")
    try:
        yield database
    finally:
        database.drop()
        with server.connect() as admin:
            admin.execute(f"DROP DATABASE {name}_t")


@pytest.fixture
def encoded(request: pytest.FixtureRequest, server: Server) -> Iterator[Database]:
    yield from _database(server, f"ENCODING '{request.param}' LC_COLLATE 'C' LC_CTYPE 'C'")


def _commands(key: str) -> tuple[tuple[tuple[str, ...], int], ...]:
    """Return every command, and the exit code that it has: the key is applied, missing a number, or held."""
    given, held = f"{key}-given", f"{key}-held"
    because = ("--reason", "für")
    return (
        (("topic", "create", "t", "--target", "sql:app.apply", "--max-attempts", "2"), 0),
        (("topic", "create", "g", "--target", "sql:app.apply", "--numbering", "given"), 0),
        (("topic", "create", "f", "--target", "sql:app.fail", "--max-attempts", "1"), 0),
        (("topic", "grant", "t", "--caller", "inturn_caller"), 0),
        (("topic", "revoke", "t", "--caller", "inturn_caller"), 0),
        (("append", "t", key, "insert", '{"a": "grün"}'), 0),
        (("wait", key, "--timeout", "0"), 11),
        (("keys",), 0),
        (("why", key), 0),
        (("show", key, "--payload"), 0),
        (("pause", key, *because), 0),
        (("resume", key), 0),
        (("status",), 0),
        (("metrics", "--keys", "3"), 0),
        (("topic", "list"), 0),
        (("topic", "show", "t"), 0),
        (("apply", "--drain", "--quiet"), 0),
        (("wait", key), 0),
        (("replay", key, "1", *because), 0),
        (("apply", "--drain", "--quiet"), 0),
        (("append", "t", key, "bad"), 0),
        (("amend", key, "3", "--name", "böse", *because), 0),
        (("skip", key, "--seq", "3", *because), 0),
        (("append", "g", given, "n", "--seq", "2"), 0),
        (("apply", "--drain", "--quiet"), 0),
        (("fill-gap", given, "--seq", "1", *because), 0),
        (("append", "f", held, "n"), 0),
        (("apply", "--drain", "--quiet"), 3),
        (("retry", held), 0),
        (("apply", "--drain", "--quiet"), 3),
        (("cancel-rest", held, *because), 0),
        (("topic", "merge", "t", "a", "b", "last"), 0),
        (("topic", "set", "t", "--retain", "1d"), 0),
        (("apply", "--drain", "--quiet"), 0),
        (("prune", "--older-than", "0s"), 0),
        (("verify",), 0),
        (("doctor",), 9),  # the tests' server has fsync off
    )


def _every_command(dsn: str, key: str) -> None:
    for command, expected in _commands(key):
        code, _, said = run_inturn(dsn, *command)
        assert code == expected, (command, said)
        assert (said == "") == (code != 11), (command, said)


def test_every_command_is_tried_in_another_encoding() -> None:
    tried = {" ".join(words[:count]) for words, _ in _commands("k") for count in (1, 2)}
    by_the_tests = {"upgrade", "downgrade"}
    elsewhere = {"completion", "demo", "embedded start", "embedded status", "embedded stop"}
    assert {*commands_of(cli)} - tried == by_the_tests | elsewhere


@pytest.mark.parametrize("encoded", ["LATIN1", "SQL_ASCII"], indirect=True)
def test_every_command_works_in_another_encoding(encoded: Database) -> None:
    assert run_inturn(encoded.dsn, "upgrade")[0] == 0
    assert run_inturn(encoded.dsn, "upgrade", "--receiver-only")[0] == 0
    encoded.execute(_APP)
    encoded.execute(THEIR_APP)
    _every_command(encoded.dsn, "schlüssel")
    with encoded.connect(user=OWNER) as connection:
        found = connection.execute("SELECT count(*) FROM app.effect WHERE payload ~ 'gr.+n'").fetchone()
    assert found == (2,)
    encoded.execute("DROP SCHEMA app CASCADE")
    assert run_inturn(encoded.dsn, "downgrade", "--force")[0] == 0


@pytest.mark.parametrize("encoded", ["LATIN1", "SQL_ASCII"], indirect=True)
def test_handlers_and_services_are_given_what_was_appended_in_another_encoding(encoded: Database) -> None:
    upgrade(encoded.dsn)
    applier, given = Applier(), []

    @applier.handler("inside")
    def inside(_: psycopg.Connection[Any], command: Command) -> None:
        given.append((command.topic, command.key, command.payload))

    @applier.handler("outside", outside=True)
    def outside(command: Command) -> None:
        given.append((command.topic, command.key, command.payload))

    with B() as service:
        for topic, target in (("inside", "python"), ("outside", "python"), ("posted", service.url)):
            assert run_inturn(encoded.dsn, "topic", "create", topic, "--target", target)[0] == 0
            assert run_inturn(encoded.dsn, "append", topic, "schlüssel", "n", '{"a": "grün"}')[0] == 0
        apply_all(encoded, applier)
    (post,) = service.log
    given.append(("posted", post.key, json.loads(post.body)))
    expected = [(topic, "schlüssel", {"a": "grün"}) for topic in ("inside", "outside", "posted")]
    assert sorted(given, key=lambda each: each[0]) == expected


@pytest.mark.parametrize("encoded", ["LATIN1"], indirect=True)
def test_what_the_encoding_cannot_hold_is_refused_and_leaves_nothing(encoded: Database) -> None:
    upgrade(encoded.dsn)
    encoded.execute("SELECT inturn.create_topic('t')")
    good = {"topic": "t", "key": "k", "name": "n", "payload": '{"a": 1}'}
    for part in good:
        command = {**good, part: '{"a": "✓"}'}
        code, _, said = run_inturn(encoded.dsn, "append", *command.values())
        assert code == 1
        assert 'has no equivalent in encoding "LATIN1"' in said
        assert "use a database in UTF8" in said
        assert "JSON" not in said
        with psycopg.connect(encoded.caller_dsn) as connection, pytest.raises(CommandRefused):
            append(connection, command["topic"], command["key"], command["name"], command["payload"])
    with (
        psycopg.connect(encoded.caller_dsn) as connection,
        pytest.raises(CommandRefused, match="encoding does not have"),
    ):
        append_many(connection, "t", [NewCommand("k", "n"), NewCommand("✓", "n")])
    assert encoded.execute("SELECT FROM inturn.command_log") == []
    code, _, said = run_inturn(encoded.dsn, "why", "✓")
    assert code == 1
    assert "use a database in UTF8" in said


def test_every_command_works_where_all_identifiers_are_quoted(empty_database: Database) -> None:
    empty_database.execute(f"ALTER DATABASE {empty_database.name} SET quote_all_identifiers = on")
    dsn = empty_database.dsn
    assert run_inturn(dsn, "upgrade")[0] == 0
    with empty_database.connect(user=OWNER) as caller:  # a session that has it on, as those of services have
        assert caller.execute("SHOW quote_all_identifiers").fetchone() == ("on",)
        caller.execute(_APP.encode())
        caller.execute(THEIR_APP.encode())
        caller.execute(
            "CREATE FUNCTION app.many(commands inturn.command[]) RETURNS void LANGUAGE sql AS 'SELECT';"
            "CREATE FUNCTION app.both(a inturn.command, b inturn.command) RETURNS jsonb LANGUAGE sql"
            " IMMUTABLE AS 'SELECT b.payload';"
            "SELECT inturn.create_topic('many', 'sql:app.many');"
            "SELECT inturn.create_topic('merged', 'sql:app.apply')"
        )
        caller.execute("SELECT inturn.append('many', 'k', 'n'), inturn.append('merged', 'k', 'n')")
        caller.execute("CALL inturn.apply()")
        assert caller.execute("SELECT sum(pending) FROM inturn.list_keys()").fetchone() == (0,)
        assert caller.execute("SELECT outcome FROM inturn.turn WHERE outcome <> 'applied'").fetchall() == []
    _every_command(dsn, "quoted")
    empty_database.execute("DROP SCHEMA app CASCADE")
    assert run_inturn(dsn, "downgrade", "--force")[0] == 0
