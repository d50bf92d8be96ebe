"""From one major version of PostgreSQL to the next by pg_upgrade, which keeps the files of the tables."""

from __future__ import annotations

import pytest
from support.moved import UpgradedServer, check_goes_on, database_on, fill, open_witness
from support.own_server import own_database
from support.process import run_inturn


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pg_upgrade_from_16_to_18_goes_on() -> None:
    with own_database(16) as old:
        open_witness(old)
        fill(old)
        old.close()
        old.server.stop()
        new = UpgradedServer(old.server, 18)
        try:
            new.start()
            database = database_on(new, old.name)
            # Nothing is to be put right: one line says that it is there already.
            assert len(run_inturn(database.dsn, "upgrade")[1].splitlines()) == 1
            check_goes_on(database)
            database.close()
        finally:
            new.remove()
