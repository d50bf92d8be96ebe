"""`upgrade` brings row level security to what it must be, and reaches partitions and sequences too."""

from __future__ import annotations

import json

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from support import partitioned
from support.database import Database
from support.dump import dump
from support.logins import connect_as, login
from support.process import run_inturn
from support.refusal import refusal
from support.roles import APPLIER, CALLER

from inturn.schema.install import upgrade
from inturn.schema.privileges import Change
from inturn.schema.receiver import upgrade_receiver

POLICY = "CREATE POLICY granted ON inturn.{} USING (topic <> ALL ((SELECT inturn._hidden_topics())::text[]))"
#: What somebody did, and what puts it right.
WRONG = [
    (
        "ALTER TABLE inturn.command_log DISABLE ROW LEVEL SECURITY",
        ["ALTER TABLE inturn.command_log ENABLE ROW LEVEL SECURITY"],
    ),
    ("DROP POLICY granted ON inturn.turn", [POLICY.format("turn")]),
    (
        "ALTER POLICY granted ON inturn.ticket USING (true)",
        ["DROP POLICY granted ON inturn.ticket", POLICY.format("ticket")],
    ),
    (
        "ALTER POLICY granted ON inturn.skip TO inturn_caller",
        ["DROP POLICY granted ON inturn.skip", POLICY.format("skip")],
    ),
    # Then it holds for the owner's functions as well: an applier that may see no key applies none.
    (
        "ALTER TABLE inturn.wake_hint FORCE ROW LEVEL SECURITY",
        ["ALTER TABLE inturn.wake_hint NO FORCE ROW LEVEL SECURITY"],
    ),
    # One of several that holds is enough.
    ('CREATE POLICY "All" ON inturn.intake USING (true)', ['DROP POLICY "All" ON inturn.intake']),
    (
        "CREATE POLICY mine ON inturn.waiter AS RESTRICTIVE TO inturn_operator USING (false)",
        ["DROP POLICY mine ON inturn.waiter"],
    ),
    # It has no policy of ours, so nobody would see any topic.
    (
        "ALTER TABLE inturn.topic ENABLE ROW LEVEL SECURITY",
        ["ALTER TABLE inturn.topic DISABLE ROW LEVEL SECURITY"],
    ),
    # As it comes from 14, where a view cannot be told.
    (
        "ALTER VIEW inturn.merge RESET (security_invoker)",
        ["ALTER VIEW inturn.merge SET (security_invoker = true)"],
    ),
]


def reported(database: Database, dsn: str | None = None) -> list[Change]:
    """Return what `upgrade` says that it changed."""
    changes: list[Change] = []
    upgrade(dsn or database.dsn, report=changes.append)
    return changes


def test_it_puts_policies_right_and_says_so_once_and_until_then_everything_warns(database: Database) -> None:
    before = dump(database)
    for wrong, rights in WRONG:
        database.execute(wrong)
        assert reported(database) == [Change(right, done=True) for right in rights]
        assert reported(database) == []
    assert dump(database) == before
    for wrong, _ in WRONG:
        database.execute(wrong)
    expected = sorted(right for _, rights in WRONG for right in rights)
    found = json.loads(run_inturn(database.dsn, "doctor", "--json")[1])["findings"]
    (finding,) = (each for each in found if each["check"] == "privileges")
    assert (finding["level"], sorted(finding["sql"])) == ("error", expected)
    assert "warning: 11 privileges are not as they must be" in run_inturn(database.dsn, "verify")[2]
    script = run_inturn(database.dsn, "upgrade", "--sql")[1]
    assert {f"{right};" for right in expected} <= {*script.splitlines()}
    says = "row level security set right: 11. The first: ALTER TABLE inturn.command_log"
    assert says in run_inturn(database.dsn, "upgrade")[1]
    assert dump(database) == before


def test_after_a_restore_without_policies_an_upgrade_brings_them_all(database: Database) -> None:
    """As `pg_restore --no-policies` leaves it, which 18 has."""
    before = dump(database)
    secured = [
        table
        for (table,) in database.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'inturn'::regnamespace AND relrowsecurity"
        )
    ]
    assert len(secured) == 13
    for table in secured:
        database.execute(
            f"DROP POLICY granted ON inturn.{table}; ALTER TABLE inturn.{table} DISABLE ROW LEVEL SECURITY"
        )
    assert len(reported(database)) == 26
    assert dump(database) == before


def test_a_login_that_may_not_changes_nothing_and_hears_so(database: Database) -> None:
    stranger = login(database)
    database.execute(f"GRANT inturn_operator TO {conninfo_to_dict(stranger)['user']}")
    wrong, rights = WRONG[0]
    database.execute(wrong)
    assert reported(database, stranger) == [Change(right, done=False) for right in rights]
    assert run_inturn(stranger, "upgrade")[0] == 1


def test_it_waits_for_no_table_for_long(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers would queue behind it."""
    monkeypatch.setattr("inturn.schema.locks.PATIENCE", 0)
    database.execute("SELECT inturn.create_topic('orders')")
    database.execute(WRONG[0][0])
    with database.connect(user="test_caller", autocommit=False) as caller:
        caller.execute("SELECT inturn.append('orders', 'a', 'insert')")
        with pytest.raises(Exception, match="tables were in use"):
            reported(database)
        caller.rollback()
    assert len(reported(database)) == 1


def test_a_sequence_is_for_nobody(database: Database) -> None:
    """Whoever could set it would have later commands come before earlier ones."""
    database.execute("GRANT UPDATE ON SEQUENCE inturn.intake_id_seq TO PUBLIC")
    right = "REVOKE UPDATE ON TABLE inturn.intake_id_seq FROM PUBLIC"
    assert reported(database) == [Change(right, done=True)]
    assert reported(database) == []


def test_default_privileges_open_nothing_of_ours(empty_database: Database) -> None:
    """Whoever migrates often lets the services have all that it makes."""
    for what in ("TABLES", "SEQUENCES", "ROUTINES", "SCHEMAS"):
        empty_database.execute(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON {what} TO PUBLIC, {CALLER}")
    upgrade_receiver(empty_database.dsn)
    empty_database.execute(
        f"GRANT EXECUTE ON FUNCTION inturn.accept TO {APPLIER}"
    )  # said of it alone: it stays
    upgrade(empty_database.dsn)
    assert empty_database.value(
        f"SELECT has_function_privilege('{APPLIER}', 'inturn.accept(text, text, bigint, bigint)', 'EXECUTE')"
    )
    assert reported(empty_database) == []
    open_to_it = f"""
        SELECT relname, relacl FROM pg_class WHERE relacl::text ~ '[{{,](|{CALLER})='
            AND relnamespace = 'inturn'::regnamespace
        UNION ALL SELECT proname, proacl FROM pg_proc WHERE proacl::text ~ '[{{,](|{CALLER})='
            AND pronamespace = 'inturn'::regnamespace ORDER BY 1
    """
    assert empty_database.execute(open_to_it) == []
    caller = empty_database.connect(user=CALLER)
    assert refusal(caller, "SELECT inturn.skip('orders', 'a', 1, 'because I can')").sqlstate == "42501"
    assert refusal(caller, "DELETE FROM inturn.turn").sqlstate == "42501"
    assert refusal(caller, "CREATE TABLE inturn.mine ()").sqlstate == "42501"


def test_partitions_show_an_operator_nothing_beside_their_tables_policy(empty_database: Database) -> None:
    partitioned.install(empty_database, 2)
    assert reported(empty_database) == []
    operator = connect_as(empty_database, "inturn_operator")
    for partition in ("command_log_0", "turn_1"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            operator.execute(f"SELECT FROM inturn.{partition}")
    operator.execute("SELECT FROM inturn.command_log")
    empty_database.execute(
        "GRANT SELECT ON inturn.command_log_1 TO inturn_operator; GRANT SELECT ON inturn.turn TO PUBLIC"
    )
    assert {change.sql for change in reported(empty_database)} == {
        "REVOKE SELECT ON TABLE inturn.command_log_1 FROM inturn_operator",
        "REVOKE SELECT ON TABLE inturn.turn FROM PUBLIC",
    }
    empty_database.execute("ALTER TABLE inturn.turn DISABLE ROW LEVEL SECURITY")
    assert [change.sql for change in reported(empty_database)] == [
        "ALTER TABLE inturn.turn ENABLE ROW LEVEL SECURITY"
    ]


def test_policies_for_others_and_on_what_is_not_ours_stay(database: Database) -> None:
    """As of a login that may read all rows, but no other table of the database."""
    reader = conninfo_to_dict(login(database))["user"]
    database.execute(f"CREATE POLICY reads ON inturn.turn TO {reader} USING (true)")
    database.execute("CREATE TABLE inturn.theirs (); ALTER TABLE inturn.theirs ENABLE ROW LEVEL SECURITY")
    before = dump(database)
    assert reported(database) == []
    assert dump(database) == before


def test_forced_it_would_hide_keys_from_the_appliers_of_a_topic(witness: Database) -> None:
    """Why that is put right."""
    operators = conninfo_to_dict(login(witness))["user"]
    witness.execute("SELECT inturn.grant_topic('orders', 'operator', %s)", [operators])
    witness.execute("SELECT inturn.append('orders', 'a', 'insert')")
    witness.execute("ALTER TABLE inturn.ticket FORCE ROW LEVEL SECURITY")
    applied = "SELECT count(*) FROM inturn.turn"
    witness.execute("CALL inturn.apply()")
    assert witness.value(applied) == 0
    assert len(reported(witness)) == 1
    witness.execute("CALL inturn.apply()")
    assert witness.value(applied) == 1
