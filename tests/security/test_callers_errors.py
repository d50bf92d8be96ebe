"""What an error tells a caller: never what another one appended, what failed, or why somebody acted."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from support.database import Database
from support.logins import connect_as

SECRETS = ("secret-name", "secret-payload", "secret-reason", "secret-error")


@pytest.fixture
def given(witness: Database) -> Database:
    """Topic `given`: in key x 1 is applied, 2 skipped for a reason, 3 held with an error, 5 pending."""
    witness.execute("""
        CREATE FUNCTION app.fail_third(command inturn.command) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
            IF command.seq >= 2 THEN RAISE EXCEPTION 'secret-error'; END IF; END $$;
        SELECT inturn.create_topic('given', 'sql:app.fail_third', numbering => 'given',
                                   max_attempts => 1, max_ahead => 10);
        SELECT inturn.append('given', 'x', 'secret-name', '"secret-payload"', seq => n)
        FROM unnest(ARRAY[1, 2, 3, 5]) n;
    """)
    witness.execute("CALL inturn.apply()")
    witness.execute("SELECT inturn.skip('given', 'x', 2, 'secret-reason')")
    witness.execute("CALL inturn.apply()")
    witness.execute("SELECT inturn.pause_topic('given', 'secret-reason')")
    assert witness.value("SELECT last_error FROM inturn.key_cursor WHERE key = 'x'") is not None
    return witness


def _everything(error: psycopg.Error) -> str:
    diagnostic = error.diag
    names: list[Any] = [getattr(diagnostic, name) for name in dir(diagnostic) if name.startswith("message_")]
    return f"{error} {names} {diagnostic.context} {diagnostic.constraint_name}"


#: What is refused, and its SQLSTATE.
REFUSED = [
    ("'x', 'other', '{}', seq => 1", "IT051"),
    ("'x', 'other', '{}', seq => 3", "IT051"),
    ("'x', 'other', '{}', seq => 5", "IT051"),
    ("'x', 'other', '{}', seq => 100", "IT053"),
    ("'x', 'other', '{}', seq => -1", "IT050"),
    ("'x', 'other', '{}', seq => 9223372036854775807", "IT053"),
    ("'x', 'other', '{}'", "IT007"),
    ("'x', 'other', '{}', 'once', seq => 4", "IT005"),
    ("'x', '', '{}', seq => 3", "IT004"),
]


def test_a_refusal_tells_nothing_of_what_others_did(given: Database) -> None:
    caller = connect_as(given, "inturn_caller")
    for arguments, sqlstate in REFUSED:
        with pytest.raises(psycopg.Error) as raised:
            caller.execute(f"SELECT inturn.append('given', {arguments})")
        assert raised.value.sqlstate == sqlstate, arguments
        assert [secret for secret in SECRETS if secret in _everything(raised.value)] == [], arguments


def test_a_number_that_was_passed_over_is_refused_without_the_operators_reason(given: Database) -> None:
    given.execute("SELECT inturn.skip('given', 'x', 3, 'because')")
    given.execute("SELECT inturn.resume_topic('given')")
    given.execute("CALL inturn.apply()")
    given.execute("SELECT inturn.fill_gap('given', 'x', 4, 'secret-reason')")
    caller = connect_as(given, "inturn_caller")
    with pytest.raises(psycopg.Error) as raised:
        caller.execute("SELECT inturn.append('given', 'x', 'other', seq => 4)")
    assert raised.value.sqlstate == "IT052"
    assert "was skipped" in str(raised.value)
    assert [secret for secret in SECRETS if secret in _everything(raised.value)] == []
