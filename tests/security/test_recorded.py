"""Everything that an operator or a deployer does to a topic is recorded, and done by a function only."""

from __future__ import annotations

import psycopg
import pytest
from support.database import Database
from support.logins import connect_as
from support.race import replace_in
from support.refusal import refusal
from support.roles import OPERATOR, OWNER

ROLES = ("inturn_caller", "inturn_applier", "inturn_operator", "inturn_admin")
#: what is done to a topic, in this order, and how it is recorded
STEPS = {
    "create_topic('new', max_attempts => 3)": "create",
    "set_topic('new', 'because', max_attempts => 4)": "set",
    "pause_topic('new', 'because')": "pause",
    "resume_topic('new', 'because')": "resume",
}


def test_each_step_is_recorded_with_who_did_it_and_what_it_is_then(database: Database) -> None:
    operator = connect_as(database, "inturn_operator")
    for step in STEPS:
        operator.execute(f"SELECT inturn.{step}")
    database.execute("CREATE ROLE granted_here")
    try:
        for function in ("grant_topic", "revoke_topic"):
            database.execute(f"SELECT inturn.{function}('new', 'caller', 'granted_here', 'because')")
    finally:
        database.execute("DROP ROLE granted_here")
    rows = database.execute("SELECT action, topic, key, db_user FROM inturn.operator_action ORDER BY id")
    me = operator.info.user
    admin = database.value("SELECT session_user")
    assert rows == [
        *((action, "new", "", me) for action in STEPS.values()),
        ("grant", "new", "", admin),
        ("revoke", "new", "", admin),
    ]
    created, changed = database.execute("SELECT after FROM inturn.operator_action ORDER BY id LIMIT 2")
    assert (created[0]["max_attempts"], changed[0]["max_attempts"]) == (3, 4)


def test_a_topic_that_is_there_already_is_not_recorded_again(database: Database) -> None:
    create = "SELECT inturn.create_topic('new')"
    assert database.value(create) is True
    assert database.value(create) is False
    assert refusal(database, "SELECT inturn.create_topic('new', lease => '1 h')").sqlstate == "IT010"
    assert database.value("SELECT count(*) FROM inturn.operator_action") == 1


def test_without_the_record_nobody_would_know(database: Database) -> None:
    """What the first test looks for."""
    replace_in(database, "create_topic", ("PERFORM inturn._record_action[^;]*;", ""))
    database.execute("SELECT inturn.create_topic('new')")
    assert database.execute("SELECT FROM inturn.operator_action") == []


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("table", ["topic", "topic_grant", "operator_action", "command_log", "skip"])
def test_no_operator_or_caller_writes_a_table(database: Database, role: str, table: str) -> None:
    if role == "inturn_applier" and table == "skip":
        table = "topic"  # its protocol writes skip, see test_grants
    may = database.execute(
        "SELECT p FROM unnest('{INSERT,UPDATE,DELETE,TRUNCATE}'::text[]) p"
        " WHERE has_table_privilege(%s, %s, p)",
        [role, f"inturn.{table}"],
    )
    assert may == []
    if role == "inturn_operator":
        said = refusal(
            connect_as(database, role),
            "INSERT INTO inturn.topic (name, target) VALUES ('mine', 'sql:pg_temp.pwn')",
        )
        assert said.sqlstate == "42501"


def test_actions_on_one_key_that_come_at_once_are_numbered_one_after_the_other(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('orders')")
    record = "SELECT id FROM inturn._record_action('orders', 'k', 1, 'note', %s, NULL, NULL)"
    first, second = database.session(), database.session()
    first.execute(record, ["committed"])
    waiting = second.begin(record, ["after it"])
    second.wait_blocked()
    first.commit()
    assert waiting.result(30) == [(2,)]
    second.rollback()
    first.execute(record, ["rolled back"])
    waiting = second.begin(record, ["instead of it"])
    second.wait_blocked()
    first.rollback()
    assert waiting.result(30) == [(2,)]
    second.commit()
    rows = "SELECT id, reason FROM inturn.operator_action WHERE key = 'k' ORDER BY id"
    assert database.execute(rows) == [(1, "committed"), (2, "instead of it")]


def test_on_a_snapshot_that_does_not_show_the_last_action_it_is_refused(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('orders')")
    record = "SELECT id FROM inturn._record_action('orders', 'k', 1, 'note', 'because', NULL, NULL)"
    with database.connect(autocommit=False, user=OWNER) as late:
        late.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        late.execute("SELECT FROM inturn.schema_version")
        database.execute(record)
        with pytest.raises(psycopg.errors.SerializationFailure):
            late.execute(record)
        late.rollback()
    assert database.value(record) == 2


def test_an_operator_who_removes_what_he_did_to_a_key_leaves_a_record_of_that(witness: Database) -> None:
    first, second = connect_as(witness, "inturn_operator"), witness.connect(user=OPERATOR)
    recorded = (
        "SELECT key, action, db_user, after FROM inturn.operator_action WHERE action <> 'create' ORDER BY id"
    )
    witness.execute("SELECT inturn.append('orders', k, 'insert') FROM unnest('{a,b,c}'::text[]) k")
    prune = "CALL inturn.prune('orders', older_than => '0')"
    first.execute(prune)
    assert witness.execute(recorded) == []  # there was nothing to remove
    expected = []
    for operator, key in ((first, "a"), (first, "b"), (second, "c")):
        operator.execute("SELECT inturn.skip('orders', %s, 1, 'hush')", [key])
        operator.execute(prune)
        if key != "b":  # once, while he goes on
            expected.append(("", "prune", operator.info.user, {"older_than": "00:00:00"}))
        assert witness.execute(recorded) == expected
    witness.execute("SELECT inturn.append('orders', 'd', 'insert'); UPDATE inturn.topic SET retain = '1 us'")
    first.execute("SELECT inturn.skip('orders', 'd', 1, 'by the rule')")
    first.execute("CALL inturn.prune('orders')")
    assert witness.execute(recorded) == expected  # who has set that is recorded
