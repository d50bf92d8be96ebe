"""Many keys of each state, written straight into the tables as the protocol leaves them."""

from __future__ import annotations

from support.database import Database
from support.server import Server

STATES = ("held", "waiting", "retrying", "paused", "leased", "ready", "idle")
FEW = 100

#: Of topic shop; deep1 has 300 commands.
_CROWD = """
    CREATE TEMP TABLE k AS
    SELECT 'held' AS state, n, 1 AS last FROM generate_series(1, {held}) n
    UNION ALL SELECT 'retrying', n, 1 FROM generate_series(1, {retrying}) n
    UNION ALL SELECT 'paused', n, 1 FROM generate_series(1, {paused}) n
    UNION ALL SELECT 'waiting', n, 1 FROM generate_series(1, {waiting}) n
    UNION ALL SELECT 'leased', n, 1 FROM generate_series(1, {leased}) n
    UNION ALL SELECT 'ready', n, 1 FROM generate_series(1, {ready}) n
    UNION ALL SELECT 'idle', n, 1 FROM generate_series(1, {idle}) n
    UNION ALL SELECT 'deep', 1, 300;
    INSERT INTO inturn.command_log (topic, key, seq, name, payload, created_at)
    SELECT 'shop', state || n, seq, 'insert', '{}', now() - n * interval '1 ms'
    FROM k, generate_series(1, last) seq;
    INSERT INTO inturn.key_sequence (topic, key) SELECT 'shop', state || n FROM k;
    INSERT INTO inturn.turn
        (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier, started_at)
    SELECT 'shop', state || n, 1, 1, 1, 1, true, 'applied', 'me', now() FROM k WHERE state = 'idle';
    INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at, marked)
    SELECT 'shop', state || n, 0, 0,
        CASE WHEN state IN ('retrying', 'ready', 'deep') THEN now() - n * interval '1 ms'
             WHEN state = 'leased' THEN now() + interval '1 h' ELSE 'infinity' END,
        state NOT IN ('ready', 'deep') FROM k WHERE state <> 'idle';
    INSERT INTO inturn.key_mark (topic, key, epoch, attempts, ready_at, held_at, paused_at, waiting_at,
        claimed_by, claimed_at, lease_until)
    SELECT 'shop', state || n, 0,
        CASE state WHEN 'held' THEN 5 WHEN 'retrying' THEN 1 + n % 4 ELSE 0 END,
        CASE state WHEN 'retrying' THEN now() - n * interval '1 ms' END,
        CASE state WHEN 'held' THEN now() - n * interval '1 ms' END,
        CASE state WHEN 'paused' THEN now() - n * interval '1 ms' END,
        CASE state WHEN 'waiting' THEN now() - n * interval '1 ms' END,
        CASE state WHEN 'leased' THEN 'node' END, CASE state WHEN 'leased' THEN now() END,
        CASE state WHEN 'leased' THEN now() + interval '1 h' END
    FROM k WHERE state NOT IN ('ready', 'deep', 'idle');
    DROP TABLE k;
"""
CROWDED = ("command_log", "key_sequence", "ticket", "key_mark", "turn")


def crowd_of_keys(server: Server, template: str, name: str, **crowd: int) -> Database:
    """Return a database with so many keys of each state, FEW where nothing is said."""
    database = Database(server, name, template=template)
    database.execute("SELECT inturn.create_topic('shop'), inturn.create_topic('other')")
    for table in CROWDED:
        database.execute(f"ALTER TABLE inturn.{table} SET (autovacuum_enabled = false)")
    load = _CROWD
    for state in STATES:
        load = load.replace(f"{{{state}}}", str(crowd.get(state, FEW)))
    database.execute(load)
    return database
