"""Programs of an order's commands, the rules that are true of them, and a target that tells what it got."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from psycopg.types.json import Jsonb

from support.database import Database

TOPIC = "orders"
#: True of orders that are inserted only where there is none: of whatever lies before and behind.
RULES = (
    ("insert", "update", "sql:app.combine"),
    ("update", "update", "sql:app.combine"),
    ("set", "set", "last"),
    ("update", "delete", "last"),
    ("set", "delete", "last"),
    ("insert", "delete", "nothing"),
)

#: A row an order, which is what its commands made of it; a row a call, of what was called.
SCHEMA = """
    CREATE SCHEMA IF NOT EXISTS app;
    CREATE TABLE app.state (topic text, key text, value jsonb NOT NULL, PRIMARY KEY (topic, key));
    CREATE TABLE app.call (
        id bigserial PRIMARY KEY, topic text, key text, seq bigint,
        name text, payload jsonb, attempt integer);
    CREATE FUNCTION app.carry_out(topic text, key text, name text, payload jsonb) RETURNS void
    LANGUAGE sql AS $$
        DELETE FROM app.state s WHERE name = 'delete' AND (s.topic, s.key) = (carry_out.topic, carry_out.key);
        INSERT INTO app.state SELECT topic, key, payload WHERE name = 'insert';
        UPDATE app.state s SET value = CASE name WHEN 'update' THEN s.value || payload ELSE payload END
        WHERE name IN ('update', 'set') AND (s.topic, s.key) = (carry_out.topic, carry_out.key);
    $$;
    CREATE FUNCTION app.apply(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF command.payload ? 'flaky' AND command.attempt = 1 THEN
            RAISE EXCEPTION 'refused %', command.seq;
        END IF;
        INSERT INTO app.call (topic, key, seq, name, payload, attempt)
        VALUES (command.topic, command.key, command.seq, command.name, command.payload, command.attempt);
        PERFORM app.carry_out(command.topic, command.key, command.name, command.payload);
    END $$;
    CREATE FUNCTION app.combine(first inturn.command, second inturn.command) RETURNS jsonb
        LANGUAGE sql IMMUTABLE AS $$ SELECT first.payload || second.payload $$;
"""

Program = list[tuple[str, dict[str, Any]]]


def open_orders(
    database: Database,
    *,
    topic: str = TOPIC,
    rules: Iterable[tuple[str, str, str]] = RULES,
    target: str = "sql:app.apply",
    settings: str = "backoff_base => '1 ms', backoff_cap => '1 ms'",
) -> Database:
    """Create what the target needs, once, and a topic with merge rules."""
    if database.value("SELECT to_regclass('app.state')") is None:
        database.execute(SCHEMA)
    database.execute(f"SELECT inturn.create_topic(%s, %s, {settings})", [topic, target])
    for first, then, becomes in rules:
        database.execute("SELECT inturn.merge_rule(%s, %s, %s, %s)", [topic, first, then, becomes])
    return database


def append(database: Database, key: str, *commands: str | tuple[str, Any], topic: str = TOPIC) -> None:
    """Append commands to a key, in one transaction: a name, or a name with a payload."""
    pairs = [(each, {}) if isinstance(each, str) else each for each in commands]
    database.execute(
        "SELECT inturn.append_many(%s, array_fill(%s::text, ARRAY[%s]), %s::text[], %s::jsonb[])",
        [topic, key, len(pairs), [name for name, _ in pairs], [Jsonb(payload) for _, payload in pairs]],
    )


def calls(database: Database, key: str, topic: str = TOPIC) -> list[tuple[int, str]]:
    """Return what the target was called with, in order."""
    query = "SELECT seq, name FROM app.call WHERE topic = %s AND key = %s ORDER BY id"
    return [(seq, name) for seq, name in database.execute(query, [topic, key])]


def merges(database: Database, key: str, topic: str = TOPIC) -> list[tuple[int, int | None]]:
    """Return which numbers were merged, and into which."""
    query = "SELECT seq, into_seq FROM inturn.merge WHERE topic = %s AND key = %s ORDER BY seq"
    return [(seq, into) for seq, into in database.execute(query, [topic, key])]


def state(database: Database, topic: str = TOPIC) -> dict[str, Any]:
    """Return what became of every order."""
    return dict(database.execute("SELECT key, value FROM app.state WHERE topic = %s", [topic]))


def violations(database: Database, topic: str = TOPIC) -> list[tuple[Any, ...]]:
    return database.execute("SELECT v.* FROM inturn.verify(%s) v", [topic])


def random_program(dice: random.Random, length: int, *, flaky: float = 0.0) -> Program:
    """Return commands of one order: inserted only where there is none, then changed, then deleted."""
    program: Program = []
    there = False
    for number in range(length):
        payload: dict[str, Any] = {dice.choice("abc"): number}
        if dice.random() < flaky:
            payload["flaky"] = number
        if not there:
            program.append(("insert", payload))
            there = True
        else:
            name = dice.choice(["update", "update", "set", "delete", "note"])
            program.append((name, payload))
            there = name != "delete"
    return program
