"""A SQL target is a plain VOLATILE function that returns no set; no other one ever counts as applied."""

from __future__ import annotations

import pytest
from support.database import Database
from support.not_run import IN_SQL as NOT_RUN
from support.refusal import refusal


@pytest.fixture(params=NOT_RUN)
def kind(request: pytest.FixtureRequest, database: Database) -> str:
    """One of the kinds that are no target, created as app.f."""
    database.execute("CREATE SCHEMA app; SELECT inturn.create_topic('plain')")
    database.execute(NOT_RUN[request.param][0])
    name: str = request.param
    return name


def test_create_topic_and_set_topic_refuse_it(database: Database, kind: str) -> None:
    for statement in (
        "SELECT inturn.create_topic('x', 'sql:app.f')",
        "SELECT inturn.set_topic('plain', target => 'sql:app.f')",
    ):
        said = refusal(database, statement)
        assert said.sqlstate == "IT012"
        assert NOT_RUN[kind][1] in said.message
        assert "VOLATILE" in said.hint


def test_a_topic_that_has_it_fails_its_commands(database: Database, kind: str) -> None:
    """Not by create_topic: the target was another function then, or the database's inturn an older one."""
    database.execute(
        "UPDATE inturn.topic SET target = 'sql:app.f', target_owner = current_user,"
        " target_owner_id = inturn._role_id(current_user::regrole), max_attempts = 1"
    )
    database.execute("SELECT inturn.append('plain', 'a', 'insert')")
    assert database.execute("CALL inturn.apply()") == [(0, 1)]
    (state, applied, error) = database.execute(
        "SELECT inturn.key_state(c), applied_seq, last_error FROM inturn.key_cursor c"
    )[0]
    assert (state, applied) == ("held", 0)
    assert NOT_RUN[kind][1] in error
    assert "(SQLSTATE IT012)" in error


@pytest.mark.parametrize("volatility", ["STABLE", "IMMUTABLE"])
@pytest.mark.parametrize("keys", [1, 5])
def test_a_target_that_is_altered_fails_until_it_is_altered_back(
    witness: Database, volatility: str, keys: int
) -> None:
    witness.execute(f"ALTER FUNCTION app.apply_order {volatility}")
    for key in range(keys):
        witness.execute("SELECT inturn.append('orders', %s, 'insert')", [f"k{key}"])
    witness.execute("CALL inturn.apply()")
    assert witness.value("SELECT count(*) FROM app.witness") == 0
    failed = "SELECT count(*) FROM inturn.key_cursor WHERE applied_seq = 0 AND attempts > 0"
    assert witness.value(failed) == keys
    witness.execute("ALTER FUNCTION app.apply_order VOLATILE")
    witness.execute("SELECT inturn.retry_all('orders', state) FROM unnest('{held,retrying}'::text[]) state")
    assert witness.execute("CALL inturn.apply()") == [(keys, 0)]
    assert witness.value("SELECT count(*) FROM app.witness") == keys


@pytest.mark.parametrize("volatility", ["VOLATILE", "STABLE", "IMMUTABLE"])
@pytest.mark.parametrize("language", ["sql", "plpgsql"])
def test_the_query_calls_the_function_whatever_it_is_declared(
    witness: Database, volatility: str, language: str
) -> None:
    """Without the check, as it would be when the function is altered between the check and the call."""
    witness.execute("UPDATE inturn.topic SET max_attempts = 1")
    body = "SELECT 1 / (command.seq - 2)" if language == "sql" else "BEGIN RETURN 1 / (command.seq - 2); END"
    witness.execute(
        f"CREATE FUNCTION app.f(command inturn.command) RETURNS bigint {volatility} LANGUAGE {language}"
        f" AS '{body}'; CREATE OR REPLACE FUNCTION inturn._target_function(topic text, target text)"
        " RETURNS regprocedure LANGUAGE sql AS $$ SELECT 'app.f(inturn.command)'::regprocedure $$"
    )
    for _ in range(3):
        witness.execute("SELECT inturn.append('orders', 'a', 'insert')")
    assert witness.execute("CALL inturn.apply()") == [(1, 1)]
    assert "division by zero" in witness.value("SELECT last_error FROM inturn.key_cursor")
