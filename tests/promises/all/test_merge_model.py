"""Merging changes how a state comes about, and never the state: random programs, with and without rules."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from support import shop
from support.database import Database
from support.merging import (
    RULES,
    TOPIC,
    append,
    open_orders,
    random_program,
    state,
    violations,
)

from inturn.applier import Applier, Command

PLAIN = "plain"


def _in_sql(database: Database, topics: list[str]) -> None:
    while database.value("SELECT count(*) FROM inturn.ticket WHERE topic = ANY (%s)", [topics]):
        database.execute("CALL inturn.apply(%s)", [topics])


def _in_python(database: Database, topics: list[str]) -> None:
    handlers = Applier()
    for topic in topics:
        database.execute("SELECT inturn.set_topic(%s, target => 'python')", [topic])

        @handlers.handler(topic)
        def apply(connection: psycopg.Connection[Any], command: Command) -> None:
            connection.execute(
                "SELECT app.apply(ROW(%s, %s, %s, %s, %s, now(), %s)::inturn.command)",
                [
                    *(command.topic, command.key, command.seq, command.name),
                    *(psycopg.types.json.Jsonb(command.payload), command.attempt),
                ],
            )

    while database.value("SELECT count(*) FROM inturn.ticket WHERE topic = ANY (%s)", [topics]):
        shop.apply_all(database, handlers)
    for topic in topics:
        database.execute("SELECT inturn.set_topic(%s, target => 'sql:app.apply')", [topic])


def _by_lease(database: Database, topics: list[str]) -> None:
    """Be a client in SQL, which may not hear of what it has done: then it fails the command."""
    claim = "SELECT topic, key, epoch, attempt, seq, name, payload FROM inturn.claim(%s, 3, NULL, 'client')"
    over: set[tuple[str, str]] = set()
    while database.value("SELECT count(*) FROM inturn.ticket WHERE topic = ANY (%s)", [topics]):
        rows = database.execute(claim, [topics])
        over.clear()
        for topic, key, epoch, attempt, seq, name, payload in rows:
            if (topic, key) in over:
                continue
            if "flaky" in payload and attempt == 1:
                database.execute("SELECT inturn.fail(%s, %s, %s, %s, 'refused')", [topic, key, epoch, seq])
                over.add((topic, key))
                continue
            database.execute(
                "SELECT app.apply(ROW(%s, %s, %s, %s, %s, now(), %s)::inturn.command)",
                [topic, key, seq, name, psycopg.types.json.Jsonb(payload), attempt],
            )
            database.execute("SELECT inturn.advance(%s, %s, %s, %s)", [topic, key, epoch, seq])
        for topic, key, epoch in {row[:3] for row in rows}:
            if (topic, key) not in over:
                database.execute("SELECT inturn.release(%s, %s, %s)", [topic, key, epoch])


WAYS: dict[str, Callable[[Database, list[str]], None]] = {
    "sql": _in_sql,
    "python": _in_python,
    "lease": _by_lease,
}


@contextmanager
def _both(database: Database, settings: str) -> Iterator[Database]:
    open_orders(database, settings=settings)
    open_orders(database, topic=PLAIN, rules=(), settings=settings)
    yield database


def _act(database: Database, dice: random.Random, key: str) -> None:
    """Let an operator do the same to both: what was amended is merged no more."""
    for topic in (TOPIC, PLAIN):
        pending = database.execute(
            "SELECT l.seq, l.payload FROM inturn.command_log l JOIN inturn.key_cursor c USING (topic, key)"
            " WHERE l.topic = %s AND l.key = %s AND l.seq > c.applied_seq ORDER BY l.seq DESC LIMIT 1",
            [topic, key],
        )
        for seq, payload in pending:
            amended = psycopg.types.json.Jsonb({**payload, "amended": seq})
            database.execute(
                "SELECT inturn.amend(%s, %s, %s, 'a test', payload => %s)", [topic, key, seq, amended]
            )


@pytest.mark.each_value
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(4))
def test_the_final_state_is_the_same_with_and_without_rules(database: Database, way: str, seed: int) -> None:
    dice = random.Random(f"{way}:{seed}")
    settings = (
        f"backoff_base => '1 ms', backoff_cap => '1 ms', batch_commands => {dice.choice([2, 3, 7, 100])}"
    )
    with _both(database, settings):
        programs = {f"k{n}": random_program(dice, dice.randint(1, 30), flaky=0.05) for n in range(12)}
        while any(programs.values()):
            for key, program in programs.items():
                some = [program.pop(0) for _ in range(min(dice.randint(0, 6), len(program)))]
                for topic in (TOPIC, PLAIN):
                    if some:
                        append(database, key, *some, topic=topic)
                if some and dice.random() < 0.1:
                    _act(database, dice, key)
            WAYS[dice.choice([way, way, *WAYS])](database, [TOPIC, PLAIN])
        # Nothing of an attempt that was wanted for its failure is part of an order.
        assert state(database) == state(database, PLAIN)
        assert violations(database) == violations(database, PLAIN) == []
        called = "SELECT count(*) FROM app.call WHERE topic = %s"
        merged = database.value("SELECT count(*) FROM inturn.merge WHERE into_seq IS DISTINCT FROM seq")
        assert merged > 0
        assert database.value(called, [TOPIC]) + merged == database.value(called, [PLAIN])


def test_any_rules_at_all_end_and_account_for_every_number(database: Database) -> None:
    """Rules that are true of nothing: they may wreck the state, and never the order nor the record."""
    dice = random.Random(60)
    names = ["insert", "update", "set", "delete", "note"]
    open_orders(database, rules=())
    database.execute(
        "CREATE FUNCTION app.log(c inturn.command) RETURNS void LANGUAGE sql"
        " AS $$ INSERT INTO app.call (topic, key, seq, name) VALUES (c.topic, c.key, c.seq, c.name) $$"
    )
    database.execute("SELECT inturn.set_topic('orders', target => 'sql:app.log')")
    for first in names:
        for then in names:
            becomes = dice.choice(["nothing", "last", "sql:app.combine"])
            database.execute("SELECT inturn.merge_rule('orders', %s, %s, %s)", [first, then, becomes])
    assert len(RULES) < database.value("SELECT count(*) FROM inturn.merge_rule")
    for number in range(30):
        append(database, f"k{number}", *(dice.choice(names) for _ in range(dice.randint(1, 150))))
    _in_sql(database, [TOPIC])
    assert violations(database) == []
    called = set(database.execute("SELECT key, seq FROM app.call"))
    swallowed = set(database.execute("SELECT key, seq FROM inturn.merge WHERE into_seq IS DISTINCT FROM seq"))
    assert not called & swallowed
    assert called | swallowed == set(database.execute("SELECT key, seq FROM inturn.command_log"))
    out_of_turn = """
        SELECT key, seq FROM (
            SELECT key, seq, lag(seq) OVER (PARTITION BY key ORDER BY id) AS before FROM app.call) c
        WHERE seq <= before"""
    assert database.execute(out_of_turn) == []
