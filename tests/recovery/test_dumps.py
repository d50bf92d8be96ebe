"""Backups by pg_dump, in every format, restored without owners and privileges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from support.database import Database
from support.dump import dump
from support.logins import login
from support.moved import check_goes_on, check_verified, fill
from support.process import run_inturn
from support.recovery_page import backup_lines, run_lines
from support.roles import OWNER, RECEIVER, THEIR_APP, members
from support.server import Server

from inturn.schema.install import upgrade
from inturn.schema.privileges import Change
from inturn.schema.version import HEAD, installed_version

# Each starts programs, one after the other, which takes its time on a busy machine.
pytestmark = [pytest.mark.timeout(600), pytest.mark.server]

#: What in the schema is open to everybody, or to a login of a service that is not inturn's.
OPEN = f"""
    SELECT name FROM (
        SELECT relname, relacl FROM pg_class WHERE relnamespace = 'inturn'::regnamespace
        UNION ALL SELECT proname, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc
        WHERE pronamespace = 'inturn'::regnamespace
        UNION ALL SELECT nspname, nspacl FROM pg_namespace WHERE nspname = 'inturn') o (name, acl)
    WHERE acl::text ~ '[{{,](|{RECEIVER})='
"""


@pytest.fixture
def restored(server: Server, empty_database: Database) -> Iterator[Database]:
    """A database to restore into."""
    database = Database(server, f"{empty_database.name}_restored")
    yield database
    database.drop()


def copy(source: Database, to: Database, kind: str, folder: Path, *more: str, bare: bool = True) -> None:
    """Dump one database in a format and restore it into another one, by the first lines of the page.

    What comes after those is the test's to do. more: options of pg_dump; bare: without owners and privileges.
    """
    backup, restore = backup_lines(kind, bare=bare)
    backup = backup.replace("pg_dump ", f"pg_dump {' '.join(more)} ")
    names = {"INTURN_DSN": source.owner_dsn, "RESTORED_DSN": to.owner_dsn}
    run_lines(backup + restore.partition("\n")[0] + "\n", folder, source.server.binaries, **names)
    # The tables of the service are not inturn's to put right.
    to.execute(THEIR_APP)


@pytest.mark.parametrize("kind", ["plain", "custom", "directory", "tar"])
def test_a_restore_in_any_format_goes_on_after_an_upgrade(
    witness: Database, restored: Database, tmp_path: Path, kind: str
) -> None:
    fill(witness)
    copy(witness, restored, kind, tmp_path)
    changes: list[Change] = []
    assert upgrade(restored.dsn, report=changes.append) == (HEAD, HEAD)
    assert len(changes) > 100
    assert all(change.done for change in changes)
    assert sorted(dump(restored).splitlines()) == sorted(dump(witness).splitlines())
    check_goes_on(restored)


def test_until_it_is_upgraded_a_restore_is_open_to_everybody_and_everything_warns(
    witness: Database, restored: Database, tmp_path: Path
) -> None:
    fill(witness)
    for what in ("TABLES", "SEQUENCES", "ROUTINES", "SCHEMAS"):
        restored.execute(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON {what} TO PUBLIC, {RECEIVER}")
    copy(witness, restored, "custom", tmp_path)
    # What everybody tries first when an applier is refused.
    restored.execute("GRANT USAGE ON SCHEMA inturn TO PUBLIC")
    stranger = login(restored)
    attack = "SELECT inturn.cancel_rest('orders', 'bad', 'because I can')"
    with psycopg.connect(stranger) as session:
        session.execute(attack)
        session.rollback()
    assert "privileges are not as they must be" in run_inturn(restored.owner_dsn, "verify")[2]
    code, printed, _ = run_inturn(restored.owner_dsn, "doctor")
    assert (code, "everybody (PUBLIC) has" in printed) == (9, True)
    code, printed, _ = run_inturn(restored.dsn, "upgrade")
    assert code == 0
    already, taken, granted = printed.splitlines()
    assert "is at revision 0001 already" in already
    assert taken.startswith("privileges taken away that nobody should have so: ")
    assert granted.startswith("privileges granted that roles lacked: ")
    with psycopg.connect(stranger) as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute(attack)
    assert restored.execute(OPEN) == [("inturn",)], "it may look there, and finds nothing that it may use"
    check_verified(restored)


@pytest.mark.parametrize(
    ("bare", "more"),
    [(False, ()), (True, ()), (True, ("--no-comments",))],
    ids=["whole", "bare", "no-comments"],
)
def test_a_copy_of_the_schema_alone_is_upgraded(
    witness: Database, restored: Database, tmp_path: Path, *, bare: bool, more: tuple[str, ...]
) -> None:
    copy(witness, restored, "plain", tmp_path, "--schema-only", *more, bare=bare)
    assert installed_version(restored.connect(user=OWNER)) == HEAD
    assert upgrade(restored.dsn) == (HEAD, HEAD)
    if "--no-comments" not in more:
        assert sorted(dump(restored).splitlines()) == sorted(dump(witness).splitlines())
    restored.execute("SELECT inturn.create_topic('orders', 'sql:app.apply_order')")
    assert restored.value("SELECT inturn.append('orders', 'a', 'insert')") == 1
    restored.execute("CALL inturn.apply()")
    assert restored.execute("SELECT key, seq FROM app.witness") == [("a", 1)]


def test_a_restore_into_a_server_without_the_roles_makes_them(
    witness: Database, server: Server, tmp_path: Path
) -> None:
    fill(witness)
    other = Server(server.version, distinct=True)
    other.start()
    with other.connect() as admin:
        admin.execute("DROP ROLE inturn_caller, inturn_applier, inturn_operator, inturn_admin")
    try:
        restored = Database(other, "restored")
        copy(witness, restored, "custom", tmp_path)
        code, printed, _ = run_inturn(restored.dsn, "upgrade")
        assert (code, "roles made: 4" in printed) == (0, True)
        restored.execute(members())
        check_goes_on(restored)
        restored.close()
    finally:
        other.remove()
