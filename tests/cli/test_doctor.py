"""`inturn doctor`: every check finds what it is for, and nothing in a database that is as it should be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import sql
from support.database import Database, until
from support.logins import login
from support.own_server import own_database
from support.place import DOCS
from support.process import run_inturn
from support.roles import OWNER, SUPERUSER
from support.server import Server

from inturn.cli import database as cli_database
from inturn.cli.doctor import server as server_checks
from inturn.cli.doctor import sessions
from inturn.cli.doctor.checks import CHECKS, examine
from inturn.cli.doctor.finding import Facts, Finding
from inturn.schema.install import upgrade

pytestmark = pytest.mark.server

#: The tests' own server is not as it should be in this.
OF_THE_TESTS = {"durability"}


def found(database: Database, *, dsn: str = "", long_seconds: float = 300.0) -> list[tuple[str, Finding]]:
    """Return what is found, but for what the tests' server is to blame for."""
    with the_commands_own(dsn or database.dsn) as connection:
        return found_by(connection, long_seconds)


def found_by(connection: psycopg.Connection[Any], long_seconds: float = 300.0) -> list[tuple[str, Finding]]:
    facts = Facts(connection, "inturn", long_seconds)
    return [(check, finding) for check, finding in examine(facts) if check not in OF_THE_TESTS]


def the_commands_own(dsn: str) -> psycopg.Connection[Any]:
    """Return a connection as the command opens it, with what it sets on it."""
    return cli_database.Database(dsn).connect(check=False)


def checks(database: Database, **options: Any) -> list[str]:
    return [f"{finding.level} {check}" for check, finding in found(database, **options)]


def repaired(database: Database) -> list[str]:
    """Run the statements that the findings give, and return what is found after that."""
    for _, finding in found(database):
        for statement in finding.sql:
            database.execute(statement)
    return checks(database)


def test_a_new_schema_is_as_it_should_be(database: Database) -> None:
    assert found(database) == []


def test_an_operator_may_ask_and_finds_the_same(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('orders')")
    assert checks(database, dsn=login(database, "inturn_operator")) == ["warning appliers"]


def test_it_prints_findings_and_exits_by_them(database: Database) -> None:
    code, out, err = run_inturn(database.dsn, "doctor")
    assert (code, err) == (9, "")
    assert out.startswith("error durability: fsync is off")
    code, out, _ = run_inturn(database.dsn, "doctor", "--json")
    assert code == 9
    document = json.loads(out)
    assert document["checks"] == [check.name for check in CHECKS]
    assert {finding["check"] for finding in document["findings"]} == OF_THE_TESTS
    assert {"level", "says", "do", "sql"} <= document["findings"][0].keys()


def test_what_is_wrong_with_the_settings_of_the_server_is_an_error(server: Server) -> None:
    bad = (
        "autovacuum = off\nsynchronous_commit = off\nfull_page_writes = off\nstatement_timeout = 5s\n"
        "default_transaction_isolation = 'repeatable read'\ndatestyle = 'german'\n"
    )
    with own_database(server, extra_settings=bad) as database:
        with the_commands_own(database.dsn) as connection:
            rows = [(c, f) for c, f in examine(Facts(connection, "inturn", 300.0))]
        names = [f"{finding.level} {check}" for check, finding in rows]
        assert names == [
            *["error durability"] * 2,
            "warning synchronous-commit",
            "error autovacuum",
            "warning timeouts",
            *["warning session-defaults"] * 2,
        ]
        assert all(finding.do for _, finding in rows)


SCENES = {
    "synchronous-commit": "ALTER DATABASE {database} SET synchronous_commit = off",
    "timeouts": "ALTER DATABASE {database} SET idle_in_transaction_session_timeout = '5s'",
    "session-defaults": "ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'",
}


@pytest.mark.parametrize("check", SCENES)
def test_what_is_set_for_the_database_is_found(database: Database, check: str) -> None:
    database.execute(SCENES[check].format(database=database.name))
    assert checks(database) == [f"warning {check}"]


def test_a_timeout_of_an_appliers_login_is_found_and_that_of_another_login_is_not(
    database: Database,
) -> None:
    applier = psycopg.conninfo.conninfo_to_dict(login(database, "inturn_applier"))["user"]
    other = psycopg.conninfo.conninfo_to_dict(login(database))["user"]
    setting = "ALTER ROLE {} IN DATABASE {} SET statement_timeout = '5s'"
    for role in (applier, other):
        assert role is not None
        database.execute(
            sql.SQL(setting).format(sql.Identifier(str(role)), sql.Identifier(database.name)).as_string()
        )
    (one,) = found(database)
    assert one[0] == "timeouts"
    assert str(applier) in one[1].says


def test_autovacuum_that_is_off_for_a_table_is_found_and_repaired(database: Database) -> None:
    database.execute("ALTER TABLE inturn.ticket SET (autovacuum_enabled = false)")
    assert checks(database) == ["error autovacuum"]
    assert repaired(database) == []


#: Privileges too many or too few, and how bad each is.
PRIVILEGES = [
    ("GRANT USAGE ON SCHEMA inturn TO PUBLIC", "error"),
    ("GRANT EXECUTE ON FUNCTION inturn.cancel_rest(text, text, text) TO PUBLIC", "error"),
    ("GRANT SELECT ON inturn.command_log TO PUBLIC", "error"),
    ("REVOKE EXECUTE ON FUNCTION inturn.topic_metrics() FROM inturn_applier", "error"),
    ("REVOKE USAGE ON SCHEMA inturn FROM inturn_operator", "error"),
    ("REVOKE SELECT, INSERT ON inturn.outbox FROM inturn_caller", "error"),
    ("REVOKE SELECT ON inturn.skip FROM inturn_operator", "error"),
    ("GRANT DELETE ON inturn.command_log TO inturn_operator", "warning"),
    ("GRANT EXECUTE ON FUNCTION inturn.skip(text, text, bigint, text) TO inturn_caller", "warning"),
]


def test_a_privilege_too_many_or_too_few_is_found_and_repaired(database: Database) -> None:
    with the_commands_own(database.dsn) as connection:
        for broken, level in PRIVILEGES:
            database.execute(broken)
            (one,) = found_by(connection)  # and nothing of those before
            assert (one[0], one[1].level) == ("privileges", level), broken
            for statement in one[1].sql:
                database.execute(statement)
        assert found_by(connection) == []


def test_a_restore_without_privileges_is_found_and_repaired(database: Database) -> None:
    """As by pg_restore --no-privileges: nothing is granted, and every function is open to everybody."""
    database.execute("""
        DO $$ DECLARE o record; BEGIN
            REVOKE ALL ON SCHEMA inturn FROM inturn_caller, inturn_applier, inturn_operator;
            REVOKE ALL ON ALL TABLES IN SCHEMA inturn FROM inturn_caller, inturn_applier, inturn_operator;
            REVOKE ALL ON ALL ROUTINES IN SCHEMA inturn FROM inturn_caller, inturn_applier, inturn_operator;
            GRANT EXECUTE ON ALL ROUTINES IN SCHEMA inturn TO PUBLIC;
        END $$
    """)
    assert checks(database) == ["error privileges"] * 2
    public = next(finding for _, finding in found(database) if "PUBLIC" in finding.says)
    assert len(public.sql) > 100
    assert repaired(database) == []


def test_a_role_that_is_missing_or_has_powers_is_found_and_repaired(database: Database) -> None:
    from inturn.cli.doctor.roles import roles

    upgrade(database.dsn, schema="mighty")
    database.administer("DROP OWNED BY mighty_caller; DROP ROLE mighty_caller")
    database.administer("ALTER ROLE mighty_applier BYPASSRLS")
    facts = Facts(database.connect(user=OWNER), "mighty", 300)
    findings = [*roles(facts)]
    assert [(finding.level, finding.sql) for finding in findings] == [
        ("error", ("CREATE ROLE mighty_caller",)),
        ("error", ("ALTER ROLE mighty_applier NOSUPERUSER NOCREATEROLE NOBYPASSRLS",)),
    ]
    for finding in findings:
        database.administer("; ".join(finding.sql))
    assert [*roles(facts)] == []


def test_topics_of_a_role_that_was_renamed_are_found(database: Database) -> None:
    """A grant is stored by name: who has it now is refused, and whoever comes by the name is not."""
    name = str(psycopg.conninfo.conninfo_to_dict(login(database))["user"])
    for topic in ("a", "b"):
        database.execute("SELECT inturn.create_topic(%s), inturn.pause_topic(%s)", [topic, topic])
        database.execute("SELECT inturn.grant_topic(%s, 'caller', %s)", [topic, name])
    assert checks(database) == []
    database.administer(f"ALTER ROLE {name} RENAME TO re{name}")
    (one,) = found(database)
    assert (one[0], one[1].level, f"{name}, to which is granted: a, b, is" in one[1].says) == (
        "roles",
        "warning",
        True,
    )


def test_a_role_that_is_a_member_of_another_is_found_and_repaired(database: Database) -> None:
    upgrade(database.dsn, schema="joined")
    database.administer(f"GRANT joined_admin TO joined_operator; GRANT {SUPERUSER} TO joined_caller")
    from inturn.cli.doctor.roles import roles

    facts = Facts(database.connect(user=OWNER), "joined", 300)
    findings = [*roles(facts)]
    assert [(finding.level, finding.sql) for finding in findings] == [
        ("warning", (f"REVOKE {SUPERUSER} FROM joined_caller",)),
        ("warning", ("REVOKE joined_admin FROM joined_operator",)),
    ]
    for finding in findings:
        database.administer("; ".join(finding.sql))
    assert [*roles(facts)] == []


def test_whoever_else_may_create_in_the_schema_is_found_and_repaired(database: Database) -> None:
    planter = str(psycopg.conninfo.conninfo_to_dict(login(database))["user"])
    database.execute(f"GRANT CREATE ON SCHEMA inturn TO {planter}")
    assert checks(database) == ["warning owner"]
    assert repaired(database) == []


def test_several_owners_are_found_and_repaired(database: Database) -> None:
    """A function sees what its owner may see."""
    other = str(psycopg.conninfo.conninfo_to_dict(login(database))["user"])
    database.administer(
        f"GRANT USAGE ON SCHEMA inturn TO {other}; ALTER TABLE inturn.skip OWNER TO {other};"
        f" ALTER FUNCTION inturn.timeline(text, text, integer) OWNER TO {other}"
    )
    (one,) = found(database)
    assert (one[0], one[1].level) == ("owner", "error")
    assert one[1].sql == (
        f"ALTER ROUTINE inturn.timeline(text,text,integer) OWNER TO {OWNER}",
        f"ALTER TABLE inturn.skip OWNER TO {OWNER}",
    )
    database.administer("; ".join(one[1].sql))
    assert checks(database) == []


def test_create_on_public_is_found_and_repaired(database: Database) -> None:
    database.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    assert checks(database) == ["warning public-schema"]
    assert repaired(database) == []


def test_what_keeps_old_snapshots_is_found_and_is_a_failure_where_warnings_are(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (
        "max_prepared_transactions = 2\nfsync = on\nfull_page_writes = on\nwal_level = logical\n"
        "autovacuum_naptime = 1h\n"
    )
    with own_database(server, extra_settings=settings) as database:
        database.administer("SELECT pg_create_logical_replication_slot('stale', 'pgoutput')")
        assert checks(database) == []
        holder, preparer = database.session(), database.session()
        holder.execute("SELECT pg_current_xact_id()")
        preparer.execute("SELECT pg_current_xact_id()")
        preparer.execute("PREPARE TRANSACTION 'a ''test'")
        assert checks(database, long_seconds=0) == [
            "warning long-transactions",
            "warning prepared-transactions",
        ]
        assert checks(database) == []
        assert f"pg_terminate_backend({holder.pid})" in found(database, long_seconds=0)[0][1].sql[0]
        assert run_inturn(database.dsn, "doctor", "--long", "0")[0] == 0
        assert run_inturn(database.dsn, "doctor", "--long", "0", "--strict")[0] == 9
        holder.rollback()
        database.execute("ROLLBACK PREPARED 'a ''test'")
        assert run_inturn(database.dsn, "doctor", "--strict")[:2] == (
            0,
            f"{len(CHECKS)} checks, nothing found\n",
        )
        monkeypatch.setattr(sessions, "SLOT_TRANSACTIONS", 0)
        (one,) = found(database)
        assert one[0] == "replication-slots"
        assert "replication slot stale keeps dead rows" in one[1].says
        database.administer("SELECT pg_drop_replication_slot('stale')")
        assert checks(database) == []


def test_a_queue_of_notifications_that_fills_is_found(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "QUEUE_USED", 0.0)
    until(lambda: checks(database) == [], "others have heard what there was")
    deaf = database.session()
    deaf.execute("LISTEN elsewhere")
    deaf.commit()
    deaf.execute("SELECT 1")
    database.execute("SELECT pg_notify('elsewhere', n || repeat('x', 7000)) FROM generate_series(1, 9) n")
    assert checks(database) == ["warning notifications"]
    deaf.rollback()
    until(lambda: checks(database) == [], "it has heard them")


def test_a_topic_that_nobody_serves_is_an_error_once_its_keys_stand(database: Database) -> None:
    database.execute("SELECT inturn.create_topic('orders'), inturn.append('orders', 'a', 'insert')")
    assert checks(database) == ["warning appliers"]
    database.execute("UPDATE inturn.ticket SET ready_at = now() - interval '10 min'")
    assert checks(database) == ["error appliers"]
    database.execute("SELECT inturn.pause_topic('orders', 'a test')")
    assert checks(database) == []
    database.execute("SELECT inturn.resume_topic('orders', 'a test')")
    database.execute("SELECT inturn.announce_applier('h:1:1', '{orders}', 'h', 1, '0001', true)")
    assert checks(database) == []
    # Of a topic that appliers number, it is a command without a number. It was served in the last day.
    database.execute("SELECT inturn.create_topic('hot', numbering => 'arrival')")
    database.execute("SELECT inturn.announce_applier('h:1:2', '{hot}', 'h', 1, '0001', true)")
    database.execute("UPDATE inturn.applier SET seen_at = now() - interval '1 h' WHERE topics = '{hot}'")
    database.execute("SELECT inturn.append('hot', 'a', 'insert')")
    assert checks(database) == []
    database.execute("UPDATE inturn.intake SET created_at = now() - interval '10 min'")
    (one,) = found(database)
    assert (one[1].level, one[0]) == ("error", "appliers")
    assert "no number yet" in one[1].says


def test_a_target_that_is_gone_or_not_granted_is_found(witness: Database) -> None:
    witness.execute("SELECT inturn.announce_applier('h:1:1', '{orders}', 'h', 1, '0001', true)")
    witness.execute("REVOKE EXECUTE ON FUNCTION app.apply_order FROM PUBLIC")
    assert checks(witness) == ["warning targets"]
    assert repaired(witness) == []
    witness.execute("DROP FUNCTION app.apply_order")
    (one,) = found(witness)
    assert (one[0], one[1].level) == ("targets", "error")
    assert "app.apply_order" in one[1].says


def test_functions_in_a_schema_that_the_operator_may_not_look_into_are_not_said_to_be_gone(
    witness: Database,
) -> None:
    witness.execute("SELECT inturn.announce_applier('h:1:1', '{orders}', 'h', 1, '0001', true)")
    witness.execute('CREATE SCHEMA "Rules"; REVOKE USAGE ON SCHEMA "Rules" FROM PUBLIC')
    rule = "(a inturn.command, b inturn.command) RETURNS jsonb LANGUAGE sql AS 'SELECT a.payload'"
    witness.execute(f'CREATE FUNCTION "Rules".both{rule}')
    witness.execute("SELECT inturn.create_topic('merged', 'python')")
    witness.execute("SELECT inturn.merge_rule('merged', 'set', 'set', 'sql:\"Rules\".both')")
    witness.execute("SELECT inturn.announce_applier('h:1:2', '{merged}', 'h', 1, '0001', true)")
    operator = login(witness, "inturn_operator")
    assert checks(witness, dsn=operator) == []
    witness.execute("DROP FUNCTION app.apply_order")
    assert checks(witness, dsn=operator) == ["error targets"]


def test_without_the_schema_only_the_server_is_examined(empty_database: Database) -> None:
    (one,) = found(empty_database)
    assert one[0] == "revision"
    assert "inturn upgrade" in one[1].do
    assert run_inturn(empty_database.dsn, "doctor")[0] == 9


def test_an_owner_that_does_not_see_sessions_is_found(database: Database) -> None:
    owner = str(psycopg.conninfo.conninfo_to_dict(login(database))["user"])
    database.administer(sql.SQL("ALTER SCHEMA inturn OWNER TO {}").format(sql.Identifier(owner)).as_string())
    database.administer(f"GRANT USAGE ON SCHEMA inturn TO {OWNER}")  # whose functions look
    assert "warning owner" in checks(database)


class _Fake:
    """Facts that say what a test wants: by a word of the query."""

    def __init__(self, said: dict[str, list[dict[str, Any]]], backend: int = 1) -> None:
        self._said = said
        self.schema = "inturn"
        self.connection = SimpleNamespace(info=SimpleNamespace(backend_pid=backend))

    def rows(self, query: str, *_parameters: object) -> list[dict[str, Any]]:
        return next((rows for word, rows in self._said.items() if word in query), [])

    def setting(self, name: str) -> str:
        return str(self._said[name][0]["value"])


def _levels(findings: Iterator[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def test_a_clock_that_is_off_and_an_old_server_are_found() -> None:
    far = _Fake({"clock_timestamp": [{"now": 1.0}]})
    assert _levels(server_checks.clock(far)) == ["warning"]  # type: ignore[arg-type]
    old = _Fake({"server_version_num": [{"value": 130012}], "server_version": [{"value": "13.12"}]})
    assert _levels(server_checks.version(old)) == ["error"]  # type: ignore[arg-type]


def test_every_check_has_a_name_of_its_own_and_a_line_in_the_how_to() -> None:
    text = (DOCS / "how-to" / "watch-it.md").read_text()
    assert re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE) == [check.name for check in CHECKS]
