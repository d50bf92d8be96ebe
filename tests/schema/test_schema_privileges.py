"""`upgrade` brings roles, grants and revokes to what they must be, and says what it changed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict
from support.database import Database
from support.dump import dump
from support.logins import let_owner_become, login
from support.process import run_inturn

from inturn.schema.install import upgrade
from inturn.schema.privileges import Change, differences
from inturn.schema.receiver import upgrade_receiver

#: What somebody did, and what puts it right.
WRONG = [
    ("GRANT USAGE ON SCHEMA inturn TO PUBLIC", "REVOKE USAGE ON SCHEMA inturn FROM PUBLIC"),
    (
        "GRANT EXECUTE ON FUNCTION inturn.cancel_rest(text, text, text) TO PUBLIC",
        "REVOKE EXECUTE ON ROUTINE inturn.cancel_rest(text,text,text) FROM PUBLIC",
    ),
    (
        "GRANT SELECT ON inturn.command_log TO PUBLIC",
        "REVOKE SELECT ON TABLE inturn.command_log FROM PUBLIC",
    ),
    (
        "REVOKE EXECUTE ON FUNCTION inturn.topic_metrics() FROM inturn_applier",
        "GRANT EXECUTE ON ROUTINE inturn.topic_metrics() TO inturn_applier",
    ),
    (
        "REVOKE USAGE ON SCHEMA inturn FROM inturn_operator",
        "GRANT USAGE ON SCHEMA inturn TO inturn_operator",
    ),
    (
        "REVOKE SELECT ON inturn.schema_version FROM inturn_caller",
        "GRANT SELECT ON TABLE inturn.schema_version TO inturn_caller",
    ),
    (
        "GRANT DELETE ON inturn.command_log TO inturn_operator",
        "REVOKE DELETE ON TABLE inturn.command_log FROM inturn_operator",
    ),
    (
        "GRANT EXECUTE ON FUNCTION inturn.skip(text, text, bigint, text) TO inturn_caller",
        "REVOKE EXECUTE ON ROUTINE inturn.skip(text,text,bigint,text) FROM inturn_caller",
    ),
    (
        "GRANT SELECT (payload) ON inturn.command_log TO inturn_caller",
        "REVOKE SELECT (payload) ON TABLE inturn.command_log FROM inturn_caller",
    ),
    (
        "GRANT UPDATE (target) ON inturn.topic TO PUBLIC",
        "REVOKE UPDATE (target) ON TABLE inturn.topic FROM PUBLIC",
    ),
    (
        "GRANT USAGE ON SCHEMA inturn TO inturn_caller WITH GRANT OPTION",
        "REVOKE GRANT OPTION FOR USAGE ON SCHEMA inturn FROM inturn_caller CASCADE",
    ),
    (
        "GRANT SELECT ON inturn.turn TO inturn_operator WITH GRANT OPTION",
        "REVOKE GRANT OPTION FOR SELECT ON TABLE inturn.turn FROM inturn_operator CASCADE",
    ),
    (
        "GRANT EXECUTE ON FUNCTION inturn.server_metrics() TO inturn_applier WITH GRANT OPTION",
        "REVOKE GRANT OPTION FOR EXECUTE ON ROUTINE inturn.server_metrics() FROM inturn_applier CASCADE",
    ),
]


def lines(database: Database, schema: str = "inturn") -> list[str]:
    """Return the definition of the schema line by line; the order of what is granted on one object varies."""
    return sorted(dump(database, schema).splitlines())


def reported(database: Database, schema: str = "inturn", dsn: str | None = None) -> list[Change]:
    """Return what `upgrade` says that it changed."""
    changes: list[Change] = []
    upgrade(dsn or database.dsn, schema=schema, report=changes.append)
    return changes


def owned(database: Database) -> str:
    """Give the database and the schema `mine` in it to a login that may do nothing else; return its DSN."""
    owner = login(database)
    user = str(conninfo_to_dict(owner)["user"])
    let_owner_become(database, user)
    upgrade(database.dsn, schema="mine")  # makes the roles, which such a login may not
    database.execute(f"DROP SCHEMA mine CASCADE; ALTER DATABASE {database.name} OWNER TO {user}")
    upgrade(owner, schema="mine")
    return owner


def test_it_puts_a_privilege_right_and_says_so_once(database: Database) -> None:
    before = lines(database)
    for wrong, right in WRONG:
        database.execute(wrong)
        assert reported(database) == [Change(right, done=True)]  # and nothing of those before
    assert reported(database) == []
    assert lines(database) == before


def test_the_command_line_says_how_many_and_which_is_the_first(database: Database) -> None:
    already = f"schema inturn of database {database.name} is at revision 0001 already\n"
    assert run_inturn(database.dsn, "upgrade") == (0, already, "")
    for wrong, _ in WRONG:
        database.execute(wrong)
    code, script, _ = run_inturn(database.dsn, "upgrade", "--sql")
    assert code == 0
    assert {right for _, right in WRONG} <= {line.removesuffix(";") for line in script.splitlines()}
    assert run_inturn(database.dsn, "upgrade") == (
        0,
        already + "privileges taken away that nobody should have so: 10."
        " The first: REVOKE GRANT OPTION FOR EXECUTE ON ROUTINE inturn.server_metrics()"
        " FROM inturn_applier CASCADE\n"
        "privileges granted that roles lacked: 3."
        " The first: GRANT EXECUTE ON ROUTINE inturn.topic_metrics() TO inturn_applier\n",
        "",
    )
    assert run_inturn(database.dsn, "upgrade") == (0, already, "")


def test_what_was_granted_on_by_such_an_option_goes_with_it(database: Database) -> None:
    before = lines(database)
    database.execute("GRANT SELECT (payload) ON inturn.command_log TO inturn_operator WITH GRANT OPTION")
    database.execute("GRANT DELETE ON inturn.turn TO inturn_operator WITH GRANT OPTION")
    database.administer("""
        SET ROLE inturn_operator;
        GRANT SELECT (payload) ON inturn.command_log TO inturn_caller;
        GRANT DELETE ON inturn.turn TO PUBLIC;
        RESET ROLE;
    """)
    assert all(change.done for change in reported(database))
    assert lines(database) == before


def test_what_another_login_has_let_the_roles_have_goes_and_its_own_stays(database: Database) -> None:
    reader = str(conninfo_to_dict(login(database))["user"])
    let_owner_become(database, reader)
    database.execute(f"GRANT USAGE ON SCHEMA inturn TO {reader}; GRANT SELECT ON inturn.turn TO {reader}")
    before = lines(database)
    database.execute(f"""
        GRANT SELECT ON inturn.turn TO {reader} WITH GRANT OPTION;
        SET ROLE {reader};
        GRANT SELECT ON inturn.turn TO inturn_caller;
        RESET ROLE;
    """)
    option = f"REVOKE GRANT OPTION FOR SELECT ON TABLE inturn.turn FROM {reader} CASCADE"
    assert reported(database)[0] == Change(option, done=True)
    assert reported(database) == []
    assert lines(database) == before
    # To have the option, and not to have used it for our roles, is nobody's business.
    database.execute(f"GRANT SELECT ON inturn.turn TO {reader} WITH GRANT OPTION")
    assert reported(database) == []


def test_the_doctor_names_a_column_that_a_role_may_read(database: Database) -> None:
    database.execute("GRANT SELECT (payload) ON inturn.command_log TO inturn_caller")
    found = json.loads(run_inturn(database.dsn, "doctor", "--json")[1])["findings"]
    assert [(each["level"], each["sql"]) for each in found if each["check"] == "privileges"] == [
        ("warning", ["REVOKE SELECT (payload) ON TABLE inturn.command_log FROM inturn_caller"])
    ]


def test_verify_warns_while_they_are_not_as_they_must_be(database: Database) -> None:
    assert run_inturn(database.dsn, "verify")[2] == ""
    database.execute("GRANT EXECUTE ON FUNCTION inturn.retry(text, text, text) TO PUBLIC")
    code, printed, said = run_inturn(database.dsn, "verify")
    assert (code, "no violation" in printed) == (0, True)
    assert said == (
        "warning: 1 privilege is not as it must be: run inturn upgrade, and see inturn doctor."
        " The first: REVOKE EXECUTE ON ROUTINE inturn.retry(text,text,text) FROM PUBLIC\n"
    )
    (warning,) = json.loads(run_inturn(database.dsn, "verify", "--json")[1])["warnings"]
    assert f"warning: {warning}\n" == said
    reported(database)
    assert run_inturn(database.dsn, "verify")[2] == ""


def test_a_role_that_is_gone_is_made_again_with_its_grants(database: Database) -> None:
    upgrade(database.dsn, schema="lost")
    before = lines(database, "lost")
    database.administer("DROP OWNED BY lost_caller; DROP ROLE lost_caller")
    made, *granted = reported(database, "lost")
    assert made == Change("CREATE ROLE lost_caller NOLOGIN", done=True)
    assert {change.sql.rpartition(" TO ")[2] for change in granted} == {"lost_caller"}
    assert lines(database, "lost") == before


def test_a_role_with_powers_loses_them(database: Database) -> None:
    upgrade(database.dsn, schema="strong")
    database.execute("ALTER ROLE strong_operator CREATEROLE")
    (change,) = reported(database, "strong", database.as_superuser())
    assert change.done
    powers = "SELECT rolcreaterole FROM pg_roles WHERE rolname = 'strong_operator'"
    assert database.value(powers) is False


def test_what_is_granted_to_others_and_what_is_not_ours_is_left_alone(database: Database) -> None:
    reader = conninfo_to_dict(login(database))["user"]
    database.execute(f"GRANT USAGE ON SCHEMA inturn TO {reader}; GRANT SELECT ON inturn.turn TO {reader}")
    database.execute("CREATE FUNCTION inturn.theirs() RETURNS integer LANGUAGE sql AS 'SELECT 1'")
    before = lines(database)
    assert reported(database) == []
    assert lines(database) == before


def test_the_owner_needs_no_superuser(empty_database: Database) -> None:
    owner = owned(empty_database)
    before = lines(empty_database, "mine")
    empty_database.administer("REVOKE ALL ON ALL ROUTINES IN SCHEMA mine FROM mine_applier")
    changes: list[Change] = []
    upgrade(owner, schema="mine", report=changes.append)
    assert changes
    assert all(change.done for change in changes)
    assert lines(empty_database, "mine") == before


def test_what_the_owner_may_not_change_is_said_and_the_rest_is_done(empty_database: Database) -> None:
    owner = owned(empty_database)
    before = lines(empty_database, "mine")
    empty_database.administer(
        "ALTER ROLE mine_caller CREATEROLE; GRANT EXECUTE ON FUNCTION mine.why(text, text) TO PUBLIC"
    )
    code, printed, said = run_inturn(owner, "--schema", "mine", "upgrade")
    empty_database.administer("ALTER ROLE mine_caller NOCREATEROLE")
    assert code == 1
    assert "REVOKE EXECUTE ON ROUTINE mine.why(text,text) FROM PUBLIC" in printed
    assert "this login may not change them" in said
    assert "ALTER ROLE mine_caller NOSUPERUSER" in said
    assert lines(empty_database, "mine") == before


def test_a_login_that_may_not_changes_nothing_and_hears_so(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = login(database)
    database.execute("GRANT EXECUTE ON FUNCTION inturn.why(text, text) TO PUBLIC")
    database.execute(f"GRANT inturn_operator TO {conninfo_to_dict(stranger)['user']}")
    before = lines(database)
    wrong = "REVOKE EXECUTE ON ROUTINE inturn.why(text,text) FROM PUBLIC"
    changes: list[Change] = []
    upgrade(stranger, report=changes.append)
    assert changes == [Change(wrong, done=False)]
    upgrade(stranger)
    assert wrong in caplog.text
    code, _, said = run_inturn(stranger, "upgrade")
    assert (code, wrong in said) == (1, True)
    assert lines(database) == before
    reported(database)
    # Where nothing is to be changed, anybody may look.
    assert run_inturn(stranger, "upgrade")[0] == 0


def test_the_receivers_guard_has_its_own_alone_and_beside_the_schema(
    empty_database: Database, database: Database
) -> None:
    wrong = (
        "GRANT EXECUTE ON FUNCTION inturn.accept TO PUBLIC; REVOKE ALL ON SCHEMA inturn FROM inturn_receiver"
    )
    rights = [
        "REVOKE EXECUTE ON ROUTINE inturn.accept(text,text,bigint,bigint) FROM PUBLIC",
        "GRANT USAGE ON SCHEMA inturn TO inturn_receiver",
    ]
    changes: list[Change] = []
    upgrade_receiver(empty_database.dsn)
    empty_database.execute(wrong)
    upgrade_receiver(empty_database.dsn, report=changes.append)
    assert changes == [Change(right, done=True) for right in rights]
    upgrade_receiver(database.dsn)
    database.execute(wrong)
    assert reported(database) == changes
    assert reported(database) == []


def test_of_the_guard_alone_nothing_is_asked_that_is_not_there(empty_database: Database) -> None:
    """Before 16, to ask about a function of a type that is not there is an error."""
    upgrade_receiver(empty_database.dsn)
    asked = []

    def ask(query: str) -> list[tuple[Any, ...]]:
        asked.append(query)
        return empty_database.execute(query)

    assert differences(ask, "inturn").statements() == []
    assert [query for query in asked if "inturn.topic)" in query] == []
