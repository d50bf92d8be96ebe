"""The server: its version and its settings."""

from __future__ import annotations

import time
from collections.abc import Iterator

from inturn.cli.doctor.finding import Facts, Finding
from inturn.cli.terminal.output import duration
from inturn.cli.terminal.rows import Row

OLDEST_VERSION = 140000
#: A clock that is off by more is reported, in seconds.
CLOCK_SECONDS = 2.0
#: What cuts a statement or a transaction short.
TIMEOUTS = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
)


def version(facts: Facts) -> Iterator[Finding]:
    number = int(facts.setting("server_version_num"))
    if number < OLDEST_VERSION:
        yield Finding(
            "error",
            f"PostgreSQL {facts.setting('server_version')} is older than any that inturn is tested with",
            "Upgrade the server to 14 or newer",
        )


def durability(facts: Facts) -> Iterator[Finding]:
    for name in ("fsync", "full_page_writes"):
        if facts.setting(name) == "off":
            yield Finding(
                "error",
                f"{name} is off: a crash of the machine can destroy the database, commands included",
                f"ALTER SYSTEM SET {name} = on, then SELECT pg_reload_conf()",
            )


def synchronous_commit(facts: Facts) -> Iterator[Finding]:
    do = "Set it to on, or accept that what was promised to a caller, and fences, may be gone after a crash"
    for row in _set_for_everybody(facts, ("synchronous_commit",)) + _set_for(facts, ("synchronous_commit",)):
        if row["value"] == "off":
            says = f"synchronous_commit is off for {row['whose']}: a crash can lose the last commits"
            yield Finding("warning", says, do)


def autovacuum(facts: Facts) -> Iterator[Finding]:
    for name in ("autovacuum", "track_counts"):
        if facts.setting(name) == "off":
            yield Finding(
                "error",
                f"{name} is off: dead rows are never removed, and appliers slow down",
                f"ALTER SYSTEM SET {name} = on, then SELECT pg_reload_conf()",
            )
    tables = facts.rows(
        "SELECT c.oid::regclass::text AS name FROM pg_class c"
        " WHERE c.relnamespace = %s::regnamespace AND 'autovacuum_enabled=false' = ANY (c.reloptions)",
        facts.schema,
    )
    for row in tables:
        yield Finding(
            "error",
            f"autovacuum is off for the table {row['name']}",
            "Set it back",
            (f"ALTER TABLE {row['name']} RESET (autovacuum_enabled)",),
        )


def timeouts(facts: Facts) -> Iterator[Finding]:
    for row in _set_for_everybody(facts, TIMEOUTS) + _set_for(facts, TIMEOUTS):
        yield Finding(
            "warning",
            f"{row['name']} is {row['value']} for {row['whose']}: handlers, or an applier's turn, are cut off"
            " there, and the command counts as failed",
            f"Use the topic's timeout, and: ALTER ROLE ... SET {row['name']} = 0 for the appliers' login",
        )


def session_defaults(facts: Facts) -> Iterator[Finding]:
    names = ("default_transaction_isolation", "DateStyle")
    for row in _set_for(facts, names) + _set_for_everybody(facts, names):
        name, value = row["name"], str(row["value"])
        if name.lower() == "datestyle" and not value.upper().startswith("ISO"):
            yield Finding(
                "warning",
                f"DateStyle is {value} for {row['whose']}: SQL targets write times otherwise",
                "Sessions of inturn set it to ISO themselves; make sure that your own do not depend on it",
            )
        elif name.lower() != "datestyle" and value != "read committed":
            yield Finding(
                "warning",
                f"default_transaction_isolation is {value} for {row['whose']}: appends may fail with 40001,"
                " and CALL apply() is refused",
                "Leave it at read committed for callers and appliers, and set the level where it is needed",
            )


def clock(facts: Facts) -> Iterator[Finding]:
    before = time.time()
    theirs = facts.rows("SELECT extract(epoch FROM clock_timestamp())::float8 AS now")[0]["now"]
    after = time.time()
    off = max(theirs - after, before - theirs, 0.0)
    if off > CLOCK_SECONDS:
        yield Finding(
            "warning",
            f"this machine's clock and the database's differ by {duration(off)}",
            "Run NTP on both; inturn itself counts by the database's clock alone",
        )


def pooler(facts: Facts) -> Iterator[Finding]:
    backend = facts.rows("SELECT pg_backend_pid() AS pid")[0]["pid"]
    if backend == facts.connection.info.backend_pid:
        return
    yield Finding(
        "warning",
        "this connection goes through a pooler: in transaction mode LISTEN does not work, and sleeping"
        " appliers find new commands within a second instead of at once",
        "Let appliers connect to the server directly; callers may stay",
    )


def _set_for_everybody(facts: Facts, names: tuple[str, ...]) -> list[Row]:
    """Return what is set in the server's files: name, value, whose."""
    return facts.rows(
        "SELECT name, reset_val || coalesce(unit, '') AS value, 'everybody' AS whose FROM pg_settings"
        " WHERE name = ANY (%s) AND reset_val <> '0' AND source IN ('configuration file', 'command line')"
        " ORDER BY name",
        list(names),
    )


def _set_for(facts: Facts, names: tuple[str, ...]) -> list[Row]:
    """Return what is set for this database, or for logins that have a role of inturn: name, value, whose."""
    return facts.rows(
        """
        SELECT split_part(s, '=', 1) AS name, substr(s, strpos(s, '=') + 1) AS value,
               concat_ws(' in ', 'role ' || r.rolname, 'database ' || d.datname) AS whose
        FROM pg_db_role_setting g CROSS JOIN unnest(g.setconfig) s
        LEFT JOIN pg_roles r ON r.oid = g.setrole LEFT JOIN pg_database d ON d.oid = g.setdatabase
        WHERE lower(split_part(s, '=', 1)) = ANY (%s) AND substr(s, strpos(s, '=') + 1) <> '0'
          AND (g.setdatabase = 0 OR d.datname = current_database())
          AND (g.setrole = 0 OR EXISTS (
              SELECT FROM pg_roles o WHERE o.rolname IN (%s, %s) AND pg_has_role(g.setrole, o.oid, 'member')
                AND NOT r.rolsuper))
        ORDER BY 1, 3
        """,
        [name.lower() for name in names],
        f"{facts.schema}_applier",
        f"{facts.schema}_caller",
    )
