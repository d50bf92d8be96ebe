"""Who keeps dead rows, the holders of server_metrics by name; and notifications from being removed."""

from __future__ import annotations

from collections.abc import Iterator

from inturn.cli.doctor.finding import Facts, Finding
from inturn.cli.terminal.output import age

#: A replication slot or a standby is reported whose snapshot is older, in transactions.
SLOT_TRANSACTIONS = 1_000_000
#: How full the server's queue of notifications is when it is reported.
QUEUE_USED = 0.25


def long_transactions(facts: Facts) -> Iterator[Finding]:
    for row in facts.rows(
        """
        SELECT a.pid, coalesce(a.usename, a.backend_type) AS who, a.application_name,
               coalesce(a.state, a.backend_type) AS state, nullif(a.datname, current_database()) AS elsewhere,
               extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds
        FROM pg_stat_activity a
        WHERE (a.datname = current_database() OR a.datname IS NOT NULL AND a.backend_xid IS NOT NULL)
          AND a.pid <> pg_backend_pid() AND a.backend_type <> 'parallel worker'
          AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid = a.pid)
          AND a.xact_start < clock_timestamp() - %s * interval '1 s'
        ORDER BY a.xact_start
        """,
        facts.long_seconds,
    ):
        yield Finding(
            "warning",
            f"a transaction is open for {age(row['seconds'])}: backend {row['pid']} of {row['who']}"
            f" ({row['application_name'] or 'no application name'}, {row['state']})"
            f"{_of(row['elsewhere'])}. Dead rows are kept for its snapshot"
            f"{'' if row['elsewhere'] else ', and the keys that it has appended to stand still'}",
            "Ask who it is, then end it",
            (f"SELECT pg_terminate_backend({row['pid']})",),
        )


def _of(database: str | None) -> str:
    return "" if database is None else f" of database {database}"


def prepared_transactions(facts: Facts) -> Iterator[Finding]:
    for row in facts.rows(
        """
        SELECT quote_literal(x.gid) AS gid, x.owner, nullif(x.database, current_database()) AS elsewhere,
               extract(epoch FROM clock_timestamp() - x.prepared)::float8 AS seconds
        FROM pg_prepared_xacts x
        WHERE x.prepared < clock_timestamp() - %s * interval '1 s'
        ORDER BY x.prepared
        """,
        facts.long_seconds,
    ):
        elsewhere = row["elsewhere"]
        hurts = "dead rows are kept for it" if elsewhere else "keys that it has appended to stand still"
        yield Finding(
            "warning",
            f"the transaction {row['gid']} of {row['owner']}{_of(elsewhere)} is prepared for"
            f" {age(row['seconds'])}: {hurts}",
            f"Ask its transaction manager, then{' there' if elsewhere else ''}:"
            f" COMMIT PREPARED {row['gid']} or ROLLBACK PREPARED",
        )


def replication_slots(facts: Facts) -> Iterator[Finding]:
    for row in facts.rows(
        """
        SELECT s.slot_name, s.active, greatest(age(s.xmin), age(s.catalog_xmin)) AS xids
        FROM pg_replication_slots s
        WHERE greatest(age(s.xmin), age(s.catalog_xmin)) > %s AND s.wal_status IS DISTINCT FROM 'lost'
        """,
        SLOT_TRANSACTIONS,
    ):
        yield Finding(
            "warning",
            f"the replication slot {row['slot_name']} keeps dead rows of {row['xids']:,} transactions",
            "Let whoever uses it catch up, or drop it: SELECT pg_drop_replication_slot(...)",
        )


def standbys(facts: Facts) -> Iterator[Finding]:
    for row in facts.rows(
        """
        SELECT a.application_name AS name, age(a.backend_xmin) AS xids FROM pg_stat_activity a
        WHERE a.backend_type = 'walsender' AND a.datname IS NULL AND age(a.backend_xmin) > %s
        """,
        SLOT_TRANSACTIONS,
    ):
        yield Finding(
            "warning",
            f"the standby {row['name']} keeps dead rows of {row['xids']:,} transactions: by"
            " hot_standby_feedback, for a query there",
            "Find the query in pg_stat_activity there and end it; a statement_timeout bounds such queries",
        )


def notifications(facts: Facts) -> Iterator[Finding]:
    (row,) = facts.rows("SELECT pg_notification_queue_usage() AS used")
    if row["used"] > QUEUE_USED:
        yield Finding(
            "warning",
            f"the server's queue of notifications is {row['used']:.0%} full: once it is full, each commit"
            " that notifies fails. From three quarters on inturn sends none: its appliers and those who wait"
            " hear of commands later",
            "End whoever listens and is in a transaction for long, in any of the server's databases",
        )
