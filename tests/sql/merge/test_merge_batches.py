"""Merging for targets that take several commands of a key: what they get, and what an answer counts."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from support import merging, shop
from support.database import Database
from support.roles import APPLIER

from inturn.applier import Applier, Command

_TARGET = """
    CREATE SCHEMA app;
    CREATE TABLE app.called (id bigserial PRIMARY KEY, key text, seqs bigint[], payloads jsonb[]);
    CREATE FUNCTION app.combine(first inturn.command, second inturn.command) RETURNS jsonb
        LANGUAGE sql IMMUTABLE AS $$ SELECT first.payload || second.payload $$;
    CREATE FUNCTION app.many(commands inturn.command[]) RETURNS integer LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO app.called (key, seqs, payloads)
        SELECT min(c.key), array_agg(c.seq), array_agg(c.payload) FROM unnest(commands) c;
        RETURN least(cardinality(commands), 2);
    END $$;
    CREATE FUNCTION app.all(commands inturn.command[]) RETURNS void LANGUAGE sql AS $$
        INSERT INTO app.called (key, seqs) SELECT min(c.key), array_agg(c.seq) FROM unnest(commands) c
    $$;
"""
_PART = ("note", "insert", "delete", "note", "set", "set", "note")


def _open(database: Database, target: str) -> None:
    database.execute(_TARGET)
    database.execute("SELECT inturn.create_topic('orders', %s)", [target])
    for rule in merging.RULES:
        database.execute("SELECT inturn.merge_rule('orders', %s, %s, %s)", [*rule])


def _called(database: Database, key: str) -> list[list[int]]:
    return [
        seqs for (seqs,) in database.execute("SELECT seqs FROM app.called WHERE key = %s ORDER BY id", [key])
    ]


def _standing(database: Database, key: str) -> list[tuple[Any, ...]]:
    return database.execute(
        "SELECT inturn.key_state(c), applied_seq FROM inturn.key_cursor c WHERE key = %s", [key]
    )


def _assert_done_in_parts(database: Database) -> None:
    # Two of four came up to 4; what the next turn begins with is taken as it stands.
    assert _called(database, "a") == [[1, 4, 6, 7], [5, 6, 7], [7]]
    assert merging.merges(database, "a") == [(2, None), (3, None)]
    assert _standing(database, "a") == [("idle", 7)]
    assert merging.violations(database) == []


def test_what_a_sql_target_answers_counts_commands_and_not_numbers(database: Database) -> None:
    _open(database, "sql:app.many")
    merging.append(database, "a", *_PART)
    database.execute("CALL inturn.apply()")
    _assert_done_in_parts(database)


def test_what_a_batch_handler_answers_counts_commands_and_not_numbers(database: Database) -> None:
    _open(database, "python")
    handlers = Applier()

    @handlers.batch_handler("orders")
    def apply(connection: psycopg.Connection[Any], commands: list[Command]) -> int:
        seqs = [command.seq for command in commands]
        connection.execute("INSERT INTO app.called (key, seqs) VALUES (%s, %s)", (commands[0].key, seqs))
        return min(len(commands), 2)

    merging.append(database, "a", *_PART)
    shop.apply_all(database, handlers)
    _assert_done_in_parts(database)


def test_a_target_gets_what_the_commands_became(database: Database) -> None:
    _open(database, "sql:app.many")
    merging.append(database, "a", ("insert", {"a": 1}), ("update", {"b": 2}), "note")
    database.execute("CALL inturn.apply()")
    assert database.execute("SELECT seqs, payloads FROM app.called") == [([2, 3], [{"a": 1, "b": 2}, {}])]


@pytest.mark.parametrize("target", ["sql:app.many", "sql:app.all"])
def test_where_all_became_nothing_the_key_moves_on_without_a_call(database: Database, target: str) -> None:
    _open(database, target)
    merging.append(database, "a", "insert", "delete", "insert", "delete")
    merging.append(database, "b", "note", "insert", "delete")
    assert database.execute("CALL inturn.apply()") == [(7, 0)]
    assert _called(database, "a") == []
    assert _called(database, "b") == [[1]]
    assert _standing(database, "a") == [("idle", 4)]
    assert _standing(database, "b") == [("idle", 3)]
    assert merging.violations(database) == []


def test_a_batch_that_is_cut_for_its_length_ends_with_what_became_nothing(database: Database) -> None:
    _open(database, "sql:app.all")
    merging.append(database, "a", "note", "insert", "delete", "set", "set", "note")
    session = database.connect(user=APPLIER)
    session.execute("SET inturn.max_claim_octets = 3")
    session.execute("CALL inturn.apply()")
    # A payload has two octets. The first turn ends before 5, into which 4 was merged.
    assert _called(database, "a") == [[1], [4], [5], [6]]
    assert merging.merges(database, "a") == [(2, None), (3, None)]
    assert merging.violations(database) == []
