"""A SQL target that takes inturn.command[]: what it is called with, what it answers, and which is refused."""

from __future__ import annotations

from typing import Any

import pytest
from support.database import Database
from support.race import replace_in
from support.refusal import refusal
from support.roles import APPLIER

_TARGET = """
    CREATE SCHEMA app;
    CREATE TABLE app.called (id bigserial PRIMARY KEY, key text, seqs bigint[], octets bigint);
    CREATE TABLE app.effect (id bigserial PRIMARY KEY, key text, seq bigint);
    CREATE FUNCTION app.many(commands inturn.command[]) RETURNS %s LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO app.called (key, seqs, octets)
        SELECT min(c.key), array_agg(c.seq ORDER BY place), sum(octet_length(c.payload::text))
        FROM unnest(commands) WITH ORDINALITY c (topic, key, seq, name, payload, created_at, attempt, place);
        INSERT INTO app.effect (key, seq) SELECT c.key, c.seq FROM unnest(commands) c ORDER BY c.seq %s;
        IF EXISTS (SELECT FROM unnest(commands) c WHERE c.name = 'fail') THEN
            RAISE EXCEPTION 'refused';
        END IF;
        %s
    END $$;
"""


def _create(
    database: Database, returns: str = "void", limit: str = "", answer: str = "", settings: str = ""
) -> None:
    database.execute(_TARGET % (returns, limit, answer))
    more = f", {settings}" if settings else ""
    database.execute(
        "SELECT inturn.create_topic('orders', 'sql:app.many', backoff_base => '1 ms',"
        f" backoff_cap => '1 ms'{more})"
    )


def _append(database: Database, key: str, *names: str) -> None:
    for name in names:
        database.execute("SELECT inturn.append('orders', %s, %s)", [key, name])


def _called(database: Database) -> list[tuple[Any, ...]]:
    return database.execute("SELECT key, seqs FROM app.called ORDER BY id")


def _effects(database: Database, key: str) -> list[int]:
    return [
        seq for (seq,) in database.execute("SELECT seq FROM app.effect WHERE key = %s ORDER BY id", [key])
    ]


@pytest.mark.parametrize(
    ("returns", "answer"),
    [
        ("void", ""),
        ("integer", "RETURN cardinality(commands);"),
        ("bigint", "RETURN cardinality(commands);"),
    ],
)
def test_it_is_called_once_for_the_commands_of_a_key_in_order(
    database: Database, returns: str, answer: str
) -> None:
    _create(database, returns, answer=answer, settings="batch_commands => 3")
    _append(database, "a", *["insert"] * 5)
    _append(database, "b", "insert")
    assert database.execute("CALL inturn.apply()") == [(6, 0)]
    assert sorted(_called(database)) == [("a", [1, 2, 3]), ("a", [4, 5]), ("b", [1])]
    assert _effects(database, "a") == [1, 2, 3, 4, 5]
    assert database.value("SELECT applied_seq FROM inturn.key_cursor WHERE key = 'a'") == 5
    assert database.execute("SELECT v.* FROM inturn.verify('orders') v") == []


def test_a_function_in_sql_that_returns_void_has_applied_all(database: Database) -> None:
    database.execute("""
        CREATE SCHEMA app; CREATE TABLE app.effect (key text, seq bigint);
        CREATE FUNCTION app.many(commands inturn.command[]) RETURNS void LANGUAGE sql AS $$
            INSERT INTO app.effect SELECT c.key, c.seq FROM unnest(commands) c $$;
        SELECT inturn.create_topic('orders', 'sql:app.many');
    """)
    _append(database, "a", *["insert"] * 3)
    assert database.execute("CALL inturn.apply()") == [(3, 0)]
    assert database.value("SELECT count(*) FROM app.effect") == 3


def test_what_it_returns_is_how_far_it_got(database: Database) -> None:
    _create(database, "integer", "LIMIT 2", "RETURN least(2, cardinality(commands));")
    _append(database, "a", *["insert"] * 5)
    assert database.execute("CALL inturn.apply()") == [(5, 0)]
    assert _called(database) == [("a", [1, 2, 3, 4, 5]), ("a", [3, 4, 5]), ("a", [5])]
    assert _effects(database, "a") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("answer", ["0", "-1", "cardinality(commands) + 1", "NULL"])
@pytest.mark.parametrize("keys", [1, 5])
def test_another_answer_fails_and_nothing_took_effect(database: Database, answer: str, keys: int) -> None:
    _create(database, "integer", answer=f"RETURN {answer};", settings="max_attempts => 1")
    for key in range(keys):
        _append(database, f"k{key}", "insert", "insert")
    assert database.execute("CALL inturn.apply()") == [(0, keys)]
    rows = database.execute("SELECT inturn.key_state(c), applied_seq, last_error FROM inturn.key_cursor c")
    assert len(rows) == keys
    for state, applied_seq, error in rows:
        assert (state, applied_seq) == ("held", 0)
        assert "app.many(inturn.command[]) returned" in error
        assert "for 1 commands" in error
    assert database.value("SELECT count(*) FROM app.effect") == 0


def test_the_command_that_fails_is_charged_alone_and_tried_again_alone(database: Database) -> None:
    _create(database, settings="max_attempts => 2")
    _append(database, "a", "insert", "insert", "fail", "insert")
    for key in range(5):
        _append(database, f"k{key}", "insert", "insert")
    for _ in range(50):
        database.execute("CALL inturn.apply()")
        if database.value("SELECT count(*) FROM inturn.key_cursor WHERE held_at IS NOT NULL"):
            break
    assert database.execute(
        "SELECT inturn.key_state(c), applied_seq, attempts FROM inturn.key_cursor c WHERE key = 'a'"
    ) == [("held", 2, 2)]
    assert _effects(database, "a") == [1, 2]
    assert all(_effects(database, f"k{key}") == [1, 2] for key in range(5))
    assert database.execute("SELECT key, to_seq, outcome FROM inturn.turn WHERE error IS NOT NULL") == [
        ("a", 2, "retrying"),
        ("a", 2, "held"),
    ]
    database.execute("SELECT inturn.skip('orders', 'a', 3, 'a test')")
    assert database.execute("CALL inturn.apply()") == [(1, 0)]
    assert _effects(database, "a") == [1, 2, 4]


@pytest.mark.parametrize(
    ("declared", "problem", "hint"),
    [
        ("RETURNS text LANGUAGE sql AS 'SELECT NULL::text'", "returns text", "how many of them took effect"),
        ("RETURNS boolean LANGUAGE sql AS 'SELECT true'", "returns boolean", "how many of them took effect"),
        ("RETURNS SETOF integer LANGUAGE sql AS 'SELECT 1'", "returns a set", "VOLATILE"),
        ("RETURNS void STABLE LANGUAGE plpgsql AS 'BEGIN END'", "is declared STABLE", "VOLATILE"),
        ("RETURNS void IMMUTABLE LANGUAGE plpgsql AS 'BEGIN END'", "is declared IMMUTABLE", "VOLATILE"),
    ],
)
def test_one_that_is_no_target_is_refused_and_fails_the_commands_of_a_topic_that_has_it(
    database: Database, declared: str, problem: str, hint: str
) -> None:
    database.execute("CREATE SCHEMA app; SELECT inturn.create_topic('orders')")
    database.execute(f"CREATE FUNCTION app.many(commands inturn.command[]) {declared}")
    for statement in (
        "SELECT inturn.create_topic('x', 'sql:app.many')",
        "SELECT inturn.set_topic('orders', target => 'sql:app.many')",
    ):
        said = refusal(database, statement)
        assert said.sqlstate == "IT012"
        assert problem in said.message
        assert hint in said.hint
    database.execute(
        "UPDATE inturn.topic SET target = 'sql:app.many', target_owner = current_user,"
        " target_owner_id = inturn._role_id(current_user::regrole), max_attempts = 1"
    )
    _append(database, "a", "insert", "insert")
    assert database.execute("CALL inturn.apply()") == [(0, 1)]
    assert problem in database.value("SELECT last_error FROM inturn.key_cursor")


def test_a_target_that_is_not_there_is_refused_with_both_ways_to_declare_it(database: Database) -> None:
    said = refusal(database, "SELECT inturn.create_topic('x', 'sql:app.none')")
    assert said.sqlstate == "IT012"
    assert "no function app.none(inturn.command) and no app.none(inturn.command[])" in said.message


def test_where_there_are_both_the_one_for_single_commands_is_called(database: Database) -> None:
    _create(database)
    database.execute(
        "CREATE FUNCTION app.many(command inturn.command) RETURNS void LANGUAGE sql AS"
        " $$ INSERT INTO app.effect (key, seq) VALUES ('single', command.seq) $$"
    )
    _append(database, "a", "insert", "insert")
    assert database.execute("CALL inturn.apply()") == [(2, 0)]
    assert _called(database) == []
    database.execute("DROP FUNCTION app.many(inturn.command)")
    _append(database, "a", "insert", "insert")
    assert database.execute("CALL inturn.apply()") == [(2, 0)]
    assert _called(database) == [("a", [3, 4])]


def test_a_batch_is_bounded_in_octets_and_a_longer_command_comes_alone(database: Database) -> None:
    _create(database)
    for size in (300, 300, 300, 2000, 100, 100):
        database.execute("SELECT inturn.append('orders', 'a', 'x', %s::jsonb)", [f'"{"x" * (size - 2)}"'])
    with database.connect(user=APPLIER) as session:
        session.execute("SET inturn.max_claim_octets = 700")
        session.execute("CALL inturn.apply()")
    assert _called(database) == [("a", [1, 2]), ("a", [3]), ("a", [4]), ("a", [5, 6])]
    assert database.execute("SELECT octets FROM app.called ORDER BY id") == [(600,), (300,), (2000,), (200,)]


def test_where_callers_number_a_batch_ends_at_the_first_gap(database: Database) -> None:
    _create(database, settings="numbering => 'given'")
    for seq in (1, 2, 4, 5):
        database.execute("SELECT inturn.append('orders', 'a', 'insert', '{}', NULL, %s)", [seq])
    assert database.execute("CALL inturn.apply()") == [(2, 0)]
    database.execute("SELECT inturn.append('orders', 'a', 'insert', '{}', NULL, 3)")
    assert database.execute("CALL inturn.apply()") == [(3, 0)]
    assert _called(database) == [("a", [1, 2]), ("a", [3, 4, 5])]
    assert database.execute("SELECT v.* FROM inturn.verify('orders') v") == []


def test_a_key_that_was_not_begun_in_time_stays_ready_as_it_was(database: Database) -> None:
    _create(database, answer="PERFORM pg_sleep(0.3);")
    replace_in(database, "_begin_until", (r"least\('1 s'", "least('100 ms'"))
    for key in ("a", "b", "c"):
        _append(database, key, "insert", "insert")
    before = database.execute("SELECT key, ready_at FROM inturn.ticket ORDER BY ready_at")
    keys, commands = database.execute(
        "SELECT keys, commands FROM inturn.apply_batch('orders', '-infinity', 3, 'test')"
    )[0]
    assert (keys, commands) == (3, 2)
    assert database.execute("SELECT key, ready_at FROM inturn.ticket ORDER BY ready_at") == before[1:]
    assert database.value("SELECT count(*) FROM app.called") == 1


def test_a_key_without_commands_is_not_a_call(database: Database) -> None:
    """A caller's open transaction keeps the key awake, and it has nothing to apply."""
    _create(database)
    _append(database, "a", "insert")
    caller = database.session()
    caller.execute("SELECT inturn.append('orders', 'a', 'insert')")
    database.execute("CALL inturn.apply()")
    database.execute("UPDATE inturn.ticket SET ready_at = '2000-01-01'")
    turn = "SELECT keys, commands FROM inturn.apply_batch('orders', '-infinity', 1, 'test')"
    assert database.execute(turn) == [(1, 0)]
    assert _called(database) == [("a", [1])]
