"""Who keeps snapshots that dead rows are kept for."""

from __future__ import annotations

from collections.abc import Iterator

from inturn.cli.doctor.finding import Facts, Finding
from inturn.cli.terminal.output import age

#: A replication slot is reported whose snapshot is older, in transactions.
SLOT_TRANSACTIONS = 1_000_000


def long_transactions(facts: Facts) -> Iterator[Finding]:
    for row in facts.rows(
        """
        SELECT a.pid, a.usename, a.application_name, a.state,
               extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds
        FROM pg_stat_activity a
        WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
          AND a.backend_type = 'client backend' AND a.xact_start < clock_timestamp() - %s * interval '1 s'
        ORDER BY a.xact_start
        """,
        facts.long_seconds,
    ):
        yield Finding(
            "warning",
            f"a transaction is open for {age(row['seconds'])}: backend {row['pid']} of {row['usename']}"
            f" ({row['application_name'] or 'no application name'}, {row['state']}). Dead rows are kept for"
            " its snapshot, and the keys that it has appended to stand still",
            "Ask who it is, then end it",
            (f"SELECT pg_terminate_backend({row['pid']})",),
        )


def prepared_transactions(facts: Facts) -> Iterator[Finding]:
    for row in facts.rows(
        """
        SELECT quote_literal(x.gid) AS gid, x.owner,
               extract(epoch FROM clock_timestamp() - x.prepared)::float8 AS seconds
        FROM pg_prepared_xacts x
        WHERE x.database = current_database() AND x.prepared < clock_timestamp() - %s * interval '1 s'
        ORDER BY x.prepared
        """,
        facts.long_seconds,
    ):
        yield Finding(
            "warning",
            f"the transaction {row['gid']} of {row['owner']} is prepared for {age(row['seconds'])}: keys that"
            " it has appended to stand still",
            f"Ask its transaction manager, then: COMMIT PREPARED {row['gid']} or ROLLBACK PREPARED",
        )


def replication_slots(facts: Facts) -> Iterator[Finding]:
    for row in facts.rows(
        """
        SELECT s.slot_name, s.active, greatest(age(s.xmin), age(s.catalog_xmin)) AS xids
        FROM pg_replication_slots s WHERE greatest(age(s.xmin), age(s.catalog_xmin)) > %s
        """,
        SLOT_TRANSACTIONS,
    ):
        yield Finding(
            "warning",
            f"the replication slot {row['slot_name']} keeps dead rows of {row['xids']:,} transactions",
            "Let whoever uses it catch up, or drop it: SELECT pg_drop_replication_slot(...)",
        )
