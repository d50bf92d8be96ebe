"""The server: its version and its settings."""

from __future__ import annotations

import time
from collections.abc import Iterator

from inturn.cli.doctor.finding import Facts, Finding
from inturn.cli.doctor.settings import TIMEOUTS, said
from inturn.cli.terminal.output import duration

OLDEST_VERSION = 140000
#: A clock that is off by more is reported, in seconds.
CLOCK_SECONDS = 2.0


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
    for it in said(facts, ("synchronous_commit",), "applier", "caller"):
        if isinstance(it, Finding):
            yield it
        elif it.value == "off":
            says = f"synchronous_commit is off for {it.whose}: a crash can lose the last commits"
            yield Finding("warning", says, do)


def autovacuum(facts: Facts) -> Iterator[Finding]:
    if facts.setting("autovacuum") == "off":
        yield Finding(
            "error",
            "autovacuum is off: dead rows are never removed, and appliers slow down",
            "ALTER SYSTEM SET autovacuum = on, then SELECT pg_reload_conf()",
        )
    for it in said(facts, ("track_counts",), "applier", "caller"):
        if isinstance(it, Finding):
            yield it
        elif it.value == "off":
            yield Finding(
                "error",
                f"track_counts is off for {it.whose}: autovacuum sees no dead rows, and appliers slow down",
                "Set it to on there",
            )
    for row in facts.rows(
        """
        SELECT c.oid::regclass::text AS name, o.prefix || 'autovacuum_enabled' AS setting
        FROM pg_class c LEFT JOIN pg_class t ON t.oid = c.reltoastrelid
        CROSS JOIN LATERAL (VALUES ('', c.reloptions), ('toast.', t.reloptions)) o (prefix, options)
        CROSS JOIN LATERAL pg_options_to_table(o.options) p
        WHERE c.relnamespace = %s::regnamespace AND c.relkind = 'r'
          AND p.option_name = 'autovacuum_enabled' AND NOT p.option_value::boolean
        ORDER BY 1, 2
        """,
        facts.schema,
    ):
        yield Finding(
            "error",
            f"{row['setting']} is off for the table {row['name']}",
            "Set it back",
            (f"ALTER TABLE {row['name']} RESET ({row['setting']})",),
        )


def timeouts(facts: Facts) -> Iterator[Finding]:
    for it in said(facts, TIMEOUTS, "applier"):
        if isinstance(it, Finding):
            yield it
        elif it.value != "0":
            yield Finding(
                "warning",
                f"{it.name} is {it.value} for {it.whose}: handlers, or an applier's turn, are cut off there,"
                " and the command counts as failed",
                f"Use the topic's timeout, and: ALTER ROLE ... SET {it.name} = 0 for the appliers' login",
            )


def session_defaults(facts: Facts) -> Iterator[Finding]:
    for it in said(facts, ("default_transaction_isolation", "DateStyle"), "applier", "caller"):
        if isinstance(it, Finding):
            yield it
        elif it.name == "DateStyle" and not str(it.value).startswith("ISO"):
            yield Finding(
                "warning",
                f"DateStyle is {it.value} for {it.whose}: SQL targets write times otherwise",
                "Sessions of inturn set it to ISO themselves; make sure that your own do not depend on it",
            )
        elif it.name != "DateStyle" and it.value != "read committed":
            yield Finding(
                "warning",
                f"default_transaction_isolation is {it.value} for {it.whose}: appends may fail with 40001,"
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
