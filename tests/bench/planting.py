"""Rows planted at once: what a million appends and turns would have left, without making them."""

from __future__ import annotations

import psycopg
from support.database import Database
from support.roles import OWNER

#: Of every kind of key but the deep one: the key, and a command.
_KEYS = """
INSERT INTO inturn.key_sequence (topic, key)
SELECT %(topic)s, %(kind)s || i FROM generate_series(1, %(count)s) i;
INSERT INTO inturn.command_log (topic, key, seq, name, payload)
SELECT %(topic)s, %(kind)s || i, 1, 'insert', '{}' FROM generate_series(1, %(count)s) i;
"""
_READY = """
INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at)
SELECT %(topic)s, %(kind)s || i, 0, 0, now() - interval '1 hour' + i * interval '1 microsecond'
FROM generate_series(1, %(count)s) i;
"""
_IDLE = """
INSERT INTO inturn.turn
    (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier, started_at)
SELECT %(topic)s, %(kind)s || i, 1, 1, 1, 1, true, 'applied', 'bench', now()
FROM generate_series(1, %(count)s) i;
"""
_HELD = """
INSERT INTO inturn.turn
    (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier, started_at, error)
SELECT %(topic)s, %(kind)s || i, attempt, 1, 0, 0, false,
       CASE attempt WHEN 5 THEN 'held' ELSE 'retrying' END, 'bench', now(), 'refused'
FROM generate_series(1, %(count)s) i, generate_series(1, 5) attempt;
INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at, marked)
SELECT %(topic)s, %(kind)s || i, 5, 0, 'infinity', true FROM generate_series(1, %(count)s) i;
INSERT INTO inturn.key_mark (topic, key, epoch, attempts, last_error, failed_at, held_at)
SELECT %(topic)s, %(kind)s || i, 5, 5, 'refused', now(), now() FROM generate_series(1, %(count)s) i;
"""
#: One key, ready before all others.
_DEEP = """
INSERT INTO inturn.key_sequence (topic, key) VALUES (%(topic)s, %(kind)s);
INSERT INTO inturn.command_log (topic, key, seq, name, payload)
SELECT %(topic)s, %(kind)s, i, 'insert', '{}' FROM generate_series(1, %(count)s) i;
INSERT INTO inturn.ticket (topic, key, epoch, applied_seq, ready_at)
VALUES (%(topic)s, %(kind)s, 0, 0, now() - interval '2 hours');
"""
_ROWS = {"ready": _KEYS + _READY, "idle": _KEYS + _IDLE, "held": _KEYS + _HELD, "deep": _DEEP}


def plant(database: Database, topic: str, **counts: int) -> None:
    """Plant ready, idle or held keys, so many of each, or one deep key with so many commands."""
    # Its cursors put parameters in themselves: a server takes one statement at a time with parameters.
    with database.connect(cursor_factory=psycopg.ClientCursor, user=OWNER) as connection:
        for kind, count in counts.items():
            connection.execute(_ROWS[kind], {"topic": topic, "kind": kind, "count": count})
    database.execute("VACUUM (ANALYZE)")
