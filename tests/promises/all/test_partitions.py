"""The log and the history, partitioned by the hash of the key: a place is one of a partition there."""

from __future__ import annotations

import pytest
from support import partitioned
from support.database import Database
from support.race import replace_in

_PRUNE = "SELECT commands, turns FROM inturn.prune_batch('orders', older_than => '0')"
_APPEND = "SELECT count(inturn.append('orders', 'k' || k, 'insert')) FROM generate_series(1, 40) k"


@pytest.fixture
def orders(empty_database: Database) -> Database:
    """40 keys with three commands each, of which two are applied, and a target that counts."""
    partitioned.install(empty_database, 4)
    empty_database.execute("""
        CREATE SCHEMA app;
        CREATE TABLE app.witness (id bigserial, key text, seq bigint);
        CREATE FUNCTION app.apply(command inturn.command) RETURNS void LANGUAGE sql AS
            'INSERT INTO app.witness (key, seq) VALUES (command.key, command.seq)';
        SELECT inturn.create_topic('orders', 'sql:app.apply');
    """)
    for _ in range(2):
        empty_database.execute(_APPEND)
        empty_database.execute("CALL inturn.apply()")
    empty_database.execute(_APPEND)
    assert len(empty_database.execute("SELECT DISTINCT tableoid FROM inturn.command_log")) == 4
    return empty_database


def test_a_prune_takes_nothing_that_is_pending(orders: Database) -> None:
    assert orders.execute(_PRUNE) == [(80, 40)]
    assert orders.value("SELECT count(*) FROM inturn.command_log WHERE seq = 3") == 40
    assert orders.execute("SELECT * FROM inturn.verify('orders')") == []
    orders.execute("CALL inturn.apply()")
    order = "SELECT array_agg(seq ORDER BY id) FROM app.witness GROUP BY key"
    assert {tuple(seqs) for (seqs,) in orders.execute(order)} == {(1, 2, 3)}


@pytest.mark.parametrize(("table", "function"), [("command_log", "_cut_commands"), ("turn", "_cut_turns")])
def test_by_the_place_alone_it_would(orders: Database, table: str, function: str) -> None:
    """What has the same place in another partition would go as well."""
    delete = f"DELETE FROM inturn.{table} d WHERE "
    replace_in(orders, function, (rf"{delete}d\.tableoid = place\.of AND ", delete))
    commands, turns = orders.execute(_PRUNE)[0]
    assert (commands, turns) != (80, 40)


def test_metrics_count_a_tables_partitions_together(orders: Database) -> None:
    """Their rows, their sizes, and what was ever appended."""
    rows = orders.execute("SELECT metric, labels->>'table', value FROM inturn.server_metrics()")
    found = {(metric, table): value for metric, table, value in rows}
    tables = {table for _, table in found if table is not None}
    assert {"command_log", "turn", "ticket"} <= tables
    assert not any("_0" in table for table in tables)
    size = (
        "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('inturn.command_log') WHERE isleaf"
    )
    assert found["inturn_table_size_bytes", "command_log"] == orders.value(size)
    orders.execute("SELECT pg_stat_force_next_flush()")
    total = ("inturn_appended_commands_total", "inturn_recorded_turns_total")
    assert {(name, None) for name in total} <= found.keys()
