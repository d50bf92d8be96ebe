"""create_topic: repeatable, strict about other settings, clear about what is out of range."""

from __future__ import annotations

from typing import Any

import pytest
from support.database import Database
from support.refusal import refusal
from support.roles import DEPLOYER


def topics(database: Database) -> list[tuple[Any, ...]]:
    return database.execute("SELECT name, target, max_attempts FROM inturn.topic ORDER BY name")


def test_created_once_and_again_with_the_same_settings(database: Database) -> None:
    create = "SELECT inturn.create_topic('orders', max_attempts => 7)"
    assert [database.value(create) for _ in range(3)] == [True, False, False]
    assert topics(database) == [("orders", "python", 7)]


def test_the_defaults_are_settings_as_any_other(database: Database) -> None:
    assert database.value("SELECT inturn.create_topic('orders')") is True
    assert database.value("SELECT inturn.create_topic('orders', 'python', 5, '1 second')") is False
    assert database.execute(
        "SELECT backoff_base::text, backoff_cap::text, max_payload_bytes, batch_commands FROM inturn.topic"
    ) == [("00:00:01", "00:05:00", 1_048_576, 100)]


def test_the_same_name_with_another_setting_is_refused_and_nothing_changes(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('orders')")
    for setting in (
        "max_attempts => 6",
        "backoff_base => '2 seconds'",
        "backoff_cap => '6 minutes'",
        "max_payload_bytes => 2000",
        "batch_commands => 99",
    ):
        said = refusal(database, f"SELECT inturn.create_topic('orders', {setting})")
        assert said.sqlstate == "IT010", setting
        assert said.message == "topic 'orders' exists already, with other settings"
        assert "inturn.topic" in said.hint
        assert topics(database) == [("orders", "python", 5)], setting


def test_another_target_is_another_setting(witness: Database) -> None:
    said = refusal(witness, "SELECT inturn.create_topic('orders', backoff_base => '10 ms')")
    assert said.sqlstate == "IT010"


def test_two_creations_at_once_agree(database: Database) -> None:
    first, second = database.session(), database.session()
    assert first.execute("SELECT inturn.create_topic('orders')") == [(True,)]
    other = second.begin("SELECT inturn.create_topic('orders')")
    assert second.wait_blocked() == [first.pid]
    first.commit()
    assert other.result() == [(False,)]
    second.commit()


OUT_OF_RANGE = [
    ("NULL", "name"),
    ("''", "name"),
    ("repeat('x', 129)", "name"),
    ("repeat('ü', 65)", "name"),
    ("'t', NULL", "target"),
    ("'t', ''", "target"),
    ("'t', 'Python'", "target"),
    ("'t', 'sql:'", "target"),
    ("'t', 'http://user:word@example.com'", "target"),
    ("'t', max_attempts => 0", "max_attempts"),
    ("'t', max_attempts => -1", "max_attempts"),
    ("'t', max_attempts => NULL", "max_attempts"),
    ("'t', backoff_base => '0'", "backoff_base"),
    ("'t', backoff_base => '-1 second'", "backoff_base"),
    ("'t', backoff_base => '6 minutes'", "backoff_base"),
    ("'t', backoff_base => NULL", "backoff_base"),
    ("'t', backoff_cap => '7 days 1 second'", "backoff_cap"),
    ("'t', backoff_cap => NULL", "backoff_cap"),
    ("'t', max_payload_bytes => 1", "max_payload_bytes"),
    ("'t', max_payload_bytes => 67108865", "max_payload_bytes"),
    ("'t', max_payload_bytes => NULL", "max_payload_bytes"),
    ("'t', batch_commands => 0", "batch_commands"),
    ("'t', batch_commands => 10001", "batch_commands"),
    ("'t', batch_commands => NULL", "batch_commands"),
]


def test_a_setting_out_of_range_is_refused_in_words_of_ours(database: Database) -> None:
    connection = database.connect(user=DEPLOYER)
    for arguments, setting in OUT_OF_RANGE:
        said = refusal(connection, f"SELECT inturn.create_topic({arguments})")
        assert said.sqlstate == "IT011", arguments
        assert setting in said.message, arguments
        assert said.hint, arguments
        assert "constraint" not in said.message, arguments
        assert "relation" not in said.message, arguments
    assert topics(database) == []


def test_a_setting_that_is_null_is_called_null(database: Database) -> None:
    connection = database.connect(user=DEPLOYER)
    for arguments, _ in OUT_OF_RANGE:
        said = refusal(connection, f"SELECT inturn.create_topic({arguments})")
        assert ("NULL" in said.message) == ("NULL" in arguments), said


def test_a_setting_at_the_end_of_its_range_is_taken(database: Database) -> None:
    for arguments in (
        "repeat('ü', 64)",
        "'1', max_attempts => 1",
        "'2', backoff_base => '1 microsecond'",
        "'3', backoff_base => '7 days', backoff_cap => '7 days'",
        "'4', max_payload_bytes => 67108864",
        "'5', batch_commands => 1",
        "'6', batch_commands => 10000",
        "E'it''s % \\x1b \"a\" topic'",
    ):
        before = {name for name, *_ in topics(database)}
        assert database.value(f"SELECT inturn.create_topic({arguments})") is True, arguments
        (name,) = {name for name, *_ in topics(database)} - before
        assert database.value("SELECT inturn.append(%s, 'a', 'n')", [name]) == 1, arguments


def test_a_target_that_cannot_be_called_is_refused_by_name(witness: Database) -> None:
    witness.execute("CREATE FUNCTION app.wrong(text) RETURNS void LANGUAGE sql AS ''")
    for target in ("app.missing", "missing.apply", "app.wrong", "lower"):
        said = refusal(witness, "SELECT inturn.create_topic('t', %s)", [f"sql:{target}"])
        assert said.sqlstate == "IT012", target
        assert f"there is no function {target}(inturn.command)" in said.message
        assert "CREATE FUNCTION" in said.hint
        assert [name for name, *_ in topics(witness)] == ["orders"], target


def test_a_target_that_is_no_name_is_refused_and_never_run(witness: Database) -> None:
    connection = witness.connect(user=DEPLOYER)
    for target in (
        "sql:app.apply_order(inturn.command",
        "sql:app.apply_order; DROP",
        "sql:a.b.c.d",
        'sql:"x',
    ):
        said = refusal(connection, "SELECT inturn.create_topic('t', %s)", [target])
        assert said.sqlstate == "IT012", target
    assert [name for name, *_ in topics(witness)] == ["orders"]


@pytest.mark.parametrize(
    ("schema", "function"), [("app", "apply_order"), ("Odd Schema", 'my"Function'), ("app", "%s")]
)
def test_a_target_of_any_name_applies(witness: Database, schema: str, function: str) -> None:
    quote = witness.value("SELECT format('%%I.%%I', %s::text, %s::text)", [schema, function])
    if function != "apply_order":
        witness.execute(f"""
            CREATE SCHEMA IF NOT EXISTS "{schema}";
            CREATE FUNCTION {quote}(command inturn.command) RETURNS void LANGUAGE sql
            AS 'SELECT app.apply_order(command)'
        """)
    assert witness.value("SELECT inturn.create_topic('t', %s)", [f"sql:{quote}"]) is True
    witness.execute("SELECT inturn.append('t', 'a', 'n')")
    witness.execute("CALL inturn.apply()")
    assert witness.execute("SELECT key, seq FROM app.witness") == [("a", 1)]
