"""Everything that an operator or a deployer does to a topic is recorded, and done by a function only."""

from __future__ import annotations

from support.database import Database
from support.logins import connect_as
from support.race import replace_in, unblocked
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


def test_no_operator_or_caller_writes_a_table(database: Database) -> None:
    may = database.execute(
        "SELECT role, t, p FROM unnest(%s::text[]) role, unnest(%s::text[]) t,"
        " unnest('{INSERT,UPDATE,DELETE,TRUNCATE}'::text[]) p"
        " WHERE has_table_privilege(role, 'inturn.' || t, p)",
        [list(ROLES), ["topic", "topic_grant", "operator_action", "command_log", "skip"]],
    )
    # Its protocol writes skip, see test_grants.
    assert [found for found in may if found[:2] != ("inturn_applier", "skip")] == []
    insert = "INSERT INTO inturn.topic (name, target) VALUES ('mine', 'sql:pg_temp.pwn')"
    assert refusal(connect_as(database, "inturn_operator"), insert).sqlstate == "42501"


RECORD = "SELECT id FROM inturn._record_action('orders', 'k', 1, 'note', %s, NULL, NULL)"


def test_actions_on_one_key_that_come_at_once_do_not_wait_for_each_other(database: Database) -> None:
    """Also on a snapshot that does not show the last one."""
    database.execute("SELECT inturn.create_topic('orders')")
    late, first, second = (database.session(user=OWNER) for _ in range(3))
    late.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    late.execute("SELECT FROM inturn.schema_version")
    reasons = {"first": first, "second": second, "third": first, "late": late}
    ids = [unblocked(database, session, RECORD, [reason])[0][0] for reason, session in reasons.items()]
    assert ids == sorted(set(ids))
    for session in (second, late, first):
        session.commit()
    rows = "SELECT id, reason FROM inturn.operator_action WHERE key = 'k' ORDER BY id"
    assert database.execute(rows) == list(zip(ids, reasons, strict=True))
    # Above those that are there, whatever the clock says.
    database.execute("UPDATE inturn.operator_action SET id = id + 3600000000 WHERE reason = 'late'")
    assert database.value(RECORD, ["when the clock was set back"]) == ids[-1] + 3600000001


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


def test_two_operators_who_act_on_the_same_keys_in_transactions_meet_no_deadlock(witness: Database) -> None:
    """Each has keys locked that the other wants: neither waits for what the other has recorded."""
    witness.execute("UPDATE inturn.topic SET max_attempts = 1")
    for key in ("b", "a"):
        for name in ("insert", "fail"):
            witness.execute("SELECT inturn.append('orders', %s, %s)", [key, name])
        witness.execute("CALL inturn.apply()")  # b is held the longest
    replay, retry = "SELECT inturn.replay('orders', %s, 1, 'why')", "SELECT inturn.retry('orders', %s)"
    for act, step, next_step in (
        ("SELECT inturn.retry_all('orders')", (replay, "a"), (replay, "b")),
        ("SELECT inturn.cancel_rest_all('why', 'orders')", (replay, "a"), (replay, "b")),
        ("SELECT inturn.replay('orders', 'a', 1, 'why')", (retry, "a"), (replay, "a")),
    ):
        first, second = witness.session(), witness.session()
        first.execute(step[0], step[1:])
        unblocked(witness, second, act, [])
        running = first.begin(next_step[0], next_step[1:])
        second.rollback()
        running.result()
        first.rollback()
