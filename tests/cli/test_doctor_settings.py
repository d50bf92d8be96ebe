"""`inturn doctor` on settings: whatever people type, wherever they set it, whatever our session has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from support.database import Database
from support.logins import login
from support.own_server import own_database
from support.roles import APPLIER
from support.server import Server

from inturn.cli import database as cli_database
from inturn.cli.doctor import server as checks
from inturn.cli.doctor.finding import Facts, Finding
from inturn.cli.doctor.settings import TIMEOUTS

pytestmark = pytest.mark.server

Check = Callable[[Facts], Iterator[Finding]]

#: What people type: what is to be found, and what is not. PostgreSQL keeps it as it was typed.
TYPED: dict[str, tuple[Check, str, str]] = {
    "synchronous_commit": (checks.synchronous_commit, "off|false|NO|0", "on|yes|1|local|remote_apply"),
    "default_transaction_isolation": (
        checks.session_defaults,
        "SERIALIZABLE|Repeatable Read",
        "READ COMMITTED|read committed",
    ),
    "datestyle": (checks.session_defaults, "German|sql, DMY|DMY, Postgres", "DMY|MDY, ISO|iso|European"),
    **dict.fromkeys(TIMEOUTS, (checks.timeouts, "1ms", "0s")),
    "statement_timeout": (checks.timeouts, "5s|5000|1 h|1ms", "0|0s|0 min|00|0.0ms"),
}


@contextmanager
def looking(dsn: str) -> Iterator[Facts]:
    """Give the facts on a connection that is opened as the command opens it."""
    with cli_database.Database(dsn).connect(check=False) as connection:
        yield Facts(connection, "inturn", 300.0)


def says(check: Check, dsn: str) -> list[str]:
    with looking(dsn) as facts:
        return [finding.says for finding in check(facts)]


def user(dsn: str) -> str:
    return str(conninfo_to_dict(dsn)["user"])


def set_for(database: Database, name: str, value: str | None, role: str | None = None) -> None:
    """Set it for the database, or for a role in it; None: no more."""
    if name == "transaction_timeout" and database.server.version < 17:
        return
    whose = "DATABASE {0}" if role is None else "ROLE {1} IN DATABASE {0}"
    how = "RESET {2}" if value is None else "SET {2} = {3}"
    database.execute(
        sql.SQL(f"ALTER {whose} {how}")
        .format(sql.Identifier(database.name), sql.Identifier(role or ""), sql.SQL(name), value)
        .as_string()
    )


def test_a_setting_is_understood_however_it_was_typed(database: Database) -> None:
    with looking(database.dsn) as facts:
        applier = user(login(database, "inturn_applier"))
        for name, (check, bad, good) in TYPED.items():
            for role, most in ((None, 9), (applier, 1)):
                for value in bad.split("|")[:most]:
                    set_for(database, name, value, role)
                    known = name != "transaction_timeout" or database.server.version >= 17
                    assert len([*check(facts)]) == known, (name, value, role)
                for value in good.split("|")[:most]:
                    set_for(database, name, value, role)
                    assert [*check(facts)] == [], (name, value, role)
                set_for(database, name, None, role)


def test_autovacuum_is_off_for_a_table_however_it_was_typed(database: Database) -> None:
    with looking(database.dsn) as facts:
        for setting in ("autovacuum_enabled", "toast.autovacuum_enabled"):
            for value, wrong in (("off", 1), ("0", 1), ("FALSE", 1), ("no", 1), ("on", 0), ("1", 0)):
                database.execute(f"ALTER TABLE inturn.command_log SET ({setting} = {value})")
                found = [*checks.autovacuum(facts)]
                assert len(found) == wrong, (setting, value)
            database.execute(f"ALTER TABLE inturn.command_log SET ({setting} = off)")
            for (statement,) in (finding.sql for finding in checks.autovacuum(facts)):
                database.execute(statement)
            assert [*checks.autovacuum(facts)] == []


def test_a_timeout_of_callers_cuts_no_handler(database: Database) -> None:
    caller = user(login(database, "inturn_caller"))
    set_for(database, "statement_timeout", "5s", caller)
    set_for(database, "synchronous_commit", "off", caller)
    assert says(checks.timeouts, database.dsn) == []
    (said,) = says(checks.synchronous_commit, database.dsn)
    assert f"off for role {caller} in database" in said


@pytest.fixture
def strict(server: Server) -> Iterator[Database]:
    """A database of a server whose files set what is to be found."""
    files = (
        "statement_timeout = 5s\ndefault_transaction_isolation = 'serializable'\ndatestyle = 'german'\n"
        "synchronous_commit = false\n"
    )
    with own_database(server, extra_settings=files) as database:
        yield database


def test_what_is_in_effect_for_nobody_is_not_found_and_what_cannot_be_seen_is_said(strict: Database) -> None:
    timeouts, operator = checks.timeouts, login(strict, "inturn_operator")
    (said,) = says(timeouts, strict.dsn)
    assert said.startswith("statement_timeout is 5s for everybody: handlers")
    # Its own login hides from an operator what the files say; from a superuser it does not.
    for name, value in (("statement_timeout", "1h"), ("datestyle", "ISO, DMY")):
        set_for(strict, name, value, user(operator))
    assert "statement_timeout cannot be seen" in says(timeouts, operator)[0]
    hidden = ["DateStyle cannot be seen" in said for said in says(checks.session_defaults, operator)]
    assert hidden == [True, False]
    strict.administer(f"ALTER ROLE {user(operator)} SUPERUSER")
    assert says(timeouts, operator) == [said]
    assert len(says(checks.session_defaults, operator)) == 2
    # Each applier has its own, as the finding advises: then it is well.
    strict.administer(f"ALTER ROLE {APPLIER} SET statement_timeout = 0")
    assert says(timeouts, strict.dsn) == []
    second = user(login(strict, "inturn_applier"))
    assert says(timeouts, strict.dsn) == [said]
    # What the database has rules over the files, for whoever looks.
    set_for(strict, "statement_timeout", "0 s")
    assert says(timeouts, operator) == says(timeouts, strict.dsn) == []
    # What a login has rules over what all roles have.
    strict.administer("ALTER ROLE ALL SET lock_timeout = '7s'")
    (said,) = says(timeouts, strict.dsn)
    assert said.startswith("lock_timeout is 7s for every role: ")
    for role in (APPLIER, second):
        strict.administer(f"ALTER ROLE {role} IN DATABASE {strict.name} SET lock_timeout = 0")
    assert says(timeouts, strict.dsn) == []
