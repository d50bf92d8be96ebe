"""What default privileges (ALTER DEFAULT PRIVILEGES) have opened goes; what somebody has granted stays."""

from __future__ import annotations

import json
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict
from support.database import Database
from support.dump import dump
from support.logins import login
from support.next_release import NextRelease
from support.process import run_inturn
from support.roles import NOT_THEIR_TABLES, OWNER, SUPERUSER

from inturn.schema.install import upgrade
from inturn.schema.privileges import Change

#: On one of each kind of thing on which default privileges give something, and on the schema.
GRANTS = """
    GRANT USAGE ON SCHEMA inturn TO {reader};
    GRANT SELECT ON inturn.turn, inturn.outbox TO {reader} WITH GRANT OPTION;
    GRANT SELECT ON SEQUENCE inturn.intake_id_seq TO {reader};
    GRANT EXECUTE ON FUNCTION inturn.why(text, text), inturn._backoff(inturn.topic, integer) TO {reader};
"""


def lines(database: Database) -> list[str]:
    """Return the definition of the schema line by line; the order of what is granted on one object varies."""
    return sorted(dump(database).splitlines())


def reported(database: Database) -> list[str]:
    """Return what `upgrade` says that it changed."""
    changes: list[Change] = []
    upgrade(database.dsn, report=changes.append)
    assert all(change.done for change in changes)
    return [change.sql for change in changes]


def reader_by_default(database: Database, beside: str = "") -> str:
    """Make a login that has everything on what the owner makes from now on."""
    reader = str(conninfo_to_dict(login(database))["user"])
    database.execute(NOT_THEIR_TABLES)
    for what in ("SCHEMAS", "TABLES", "SEQUENCES", "ROUTINES"):
        database.execute(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON {what} TO {reader}{beside}")
    return reader


def restore(database: Database, *options: str) -> None:
    """Drop the schema, and make it anew of a dump of it."""
    text = database.server.run(
        *("pg_dump", "--schema-only", "--schema", "inturn", "--no-owner", *options),
        *("--dbname", database.server.dsn(database.name, user="postgres")),
    )
    database.execute("DROP SCHEMA inturn CASCADE")
    database.server.run("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-d", database.dsn, input=text)


def test_what_somebody_has_granted_stays_where_they_give_the_same(database: Database) -> None:
    reader = reader_by_default(database)
    database.execute(GRANTS.format(reader=reader))
    before = lines(database)
    assert reported(database) == []
    assert lines(database) == before


def test_what_they_have_opened_in_a_restore_is_named_and_goes(database: Database) -> None:
    """A restore makes everything anew, with what its login grants by default; then nobody has meant it."""
    before = lines(database)
    reader = reader_by_default(database, ", PUBLIC")
    restore(database, "--no-privileges")
    found = json.loads(run_inturn(database.dsn, "doctor", "--json")[1])["findings"]
    (opened,) = (one for one in found if one["says"].startswith("default privileges"))
    assert (opened["check"], opened["level"]) == ("privileges", "error")
    assert f"REVOKE CREATE ON SCHEMA inturn FROM {reader}" in opened["sql"]
    assert {f"REVOKE UPDATE ON TABLE inturn.{one} FROM {reader}" for one in ("turn", "intake_id_seq")} <= {
        *opened["sql"]
    }
    assert {*opened["sql"]} <= {*reported(database)}
    assert reported(database) == []
    database.execute(f"REVOKE USAGE ON SCHEMA inturn FROM {reader}")
    assert lines(database) == before


def test_beside_what_a_restore_brings_it_goes_too_and_what_is_granted_then_stays(database: Database) -> None:
    """Nothing tells what was granted before from what they gave once more; it is taken away once."""
    reader = reader_by_default(database)
    database.execute(GRANTS.format(reader=reader))
    before = lines(database)
    restore(database)
    taken = reported(database)
    assert {f"REVOKE {one} FROM {reader}" for one in (
        "SELECT ON TABLE inturn.turn", "DELETE ON TABLE inturn.turn", "UPDATE ON TABLE inturn.intake_id_seq",
        "EXECUTE ON ROUTINE inturn.skip(text,text,bigint,text)", "CREATE ON SCHEMA inturn",
    )} <= {*taken}  # fmt: skip
    assert {statement.partition(" ")[0] for statement in taken} == {"REVOKE"}
    assert reported(database) == []
    database.execute(GRANTS.format(reader=reader))
    assert reported(database) == []
    assert lines(database) == before


def test_an_upgrade_that_replaces_a_function_knows_of_it_what_they_gave(
    database: Database, tmp_path: Path
) -> None:
    reader = reader_by_default(database)
    release = NextRelease(tmp_path, compatible=True)
    restore(database)
    function = "inturn.append(text, text, text, jsonb, text, bigint)"
    for owner in (SUPERUSER, OWNER):
        database.administer(f"ALTER FUNCTION {function} OWNER TO {owner}")
    release.upgrade(database.dsn)
    may = f"SELECT has_function_privilege('{reader}', '{function}', 'EXECUTE')"
    assert not database.value(may)
    database.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {reader}")
    release.downgrade(database.dsn, revision="0001")
    assert reported(database) == []
    assert database.value(may)
