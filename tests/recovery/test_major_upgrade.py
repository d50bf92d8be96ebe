"""From one major version of PostgreSQL to a newer one, in each of the ways that the how-to has.

Each test has servers of two versions, whatever the version of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.combinations import sizes
from support.database import Database
from support.dump import dump
from support.moved import (
    UpgradedServer,
    check_doctor,
    check_goes_on,
    database_on,
    fill,
    open_witness,
    subscribed,
    switched,
)
from support.own_server import own_database
from support.process import run_inturn
from support.recovery_page import backup_lines, run_lines
from support.roles import THEIR_APP, members
from support.server import DEBIAN_BINARIES, Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NEW = 18
_NO_15 = "NOT TESTED: from Debian's PostgreSQL 15; apt-get install postgresql-15"
from_15 = pytest.param(
    15, marks=[pytest.mark.rest, pytest.mark.skipif(not DEBIAN_BINARIES[15].exists(), reason=_NO_15)]
)


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    """A server of the new version."""
    server = Server(NEW, distinct=True)
    server.start()
    yield server
    server.remove()


@pytest.fixture
def new(running: Server) -> Server:
    """The server of the new version, which has logins and none of the roles of inturn."""
    running.administer("DROP ROLE IF EXISTS inturn_caller, inturn_applier, inturn_operator, inturn_admin")
    return running


def test_pg_upgrade_from_16_to_18_goes_on() -> None:
    with own_database(16) as database:
        open_witness(database)
        fill(database)
        database.close()
        database.server.stop()
        new = UpgradedServer(database.server, NEW)
        try:
            new.start()
            upgraded = database_on(new, database.name)
            # Nothing is to be put right: one line says that it is there already.
            assert len(run_inturn(upgraded.dsn, "upgrade")[1].splitlines()) == 1
            upgraded.execute("ANALYZE")
            check_doctor(upgraded)
            check_goes_on(upgraded)
            upgraded.close()
        finally:
            new.remove()


def _restore(kind: str, old: Database, new: Database, folder: Path, *, bare: bool) -> None:
    """Back up in a format and restore as the page says, without owners and privileges or with them."""
    backup, restore = backup_lines(kind, bare=bare)
    names = {"INTURN_DSN": old.owner_dsn, "RESTORED_DSN": new.owner_dsn}
    # Last night's backup is of the old server's own program.
    run_lines(backup, folder, old.server.binaries, **names)
    run_lines(restore, folder, new.server.binaries, **names)


def check_as_installed(database: Database) -> None:
    """Make sure that the schema is, privileges included, as if it had been installed there."""
    fresh = Database(database.server, "fresh")
    try:
        fresh.install()
        assert sorted(dump(database).splitlines()) == sorted(dump(fresh).splitlines())
    finally:
        fresh.drop()


@sizes("kinds", ("custom", "directory"), rest=("tar", "plain"))
@pytest.mark.parametrize("old", [16, from_15])
def test_a_dump_of_any_format_with_privileges_or_without_goes_on(
    new: Server, old: int, kinds: tuple[str, str], tmp_path: Path
) -> None:
    with own_database(old) as database:
        open_witness(database)
        fill(database)
        for kind in kinds:
            folder = tmp_path / kind
            folder.mkdir()
            restored = Database(new, "restored")
            try:
                _restore(kind, database, restored, folder, bare=kind == kinds[0])
                restored.execute(THEIR_APP)
                restored.execute(members())
                check_doctor(restored)
                check_as_installed(restored)
                check_goes_on(restored)
            finally:
                restored.drop()


@pytest.mark.parametrize("old", [16, from_15])
def test_a_subscription_of_the_newer_version_goes_on_after_the_switch(
    new: Server, old: int, tmp_path: Path
) -> None:
    with own_database(old, extra_settings="wal_level = logical", distinct=True) as blue:
        open_witness(blue)
        fill(blue)
        green = Database(new, "green")
        try:
            subscribed(blue, green, tmp_path)
            blue.execute("SELECT inturn.append('posts', 'a', 'streamed')")
            switched(blue, green)
            green.execute("ANALYZE")
            check_doctor(green)
            check_as_installed(green)
            check_goes_on(green, "streamed")
        finally:
            green.drop()
