"""What `inturn show` reads: one key in every topic that has it, with its commands, its gaps and its turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from psycopg import Connection, sql

from inturn.cli.terminal.rows import Row, fetch

# The key's rows are found by their primary keys, topic by topic; what has arrived is looked for in the whole
# intake of a topic, to which OFFSET 0 keeps it.
_KEYS = """
SELECT t.name AS topic, %(key)s::text AS key,
       CASE WHEN {schema}.key_state(c) = 'idle' AND a.key IS NOT NULL THEN 'arrived'
            ELSE {schema}.key_state(c) END AS state,
       coalesce(c.applied_seq, 0) AS applied_seq, coalesce(l.last_seq, 0) AS last_seq,
       coalesce(g.first_at, o.created_at) AS oldest_pending_at,
       coalesce(CASE t.numbering WHEN 'given' THEN g.pending ELSE l.last_seq - c.applied_seq END, 0)
           AS pending,
       coalesce(c.epoch, 0) AS epoch, coalesce(c.attempts, 0) AS attempts, t.max_attempts,
       c.ready_at, c.failed_at, c.held_at, c.last_error,
       c.paused_at, c.paused_until, t.paused_at AS topic_paused_at, t.paused_until AS topic_paused_until,
       greatest(t.first_seq, h.history_seq) AS first_seq, h.history_seq,
       c.waiting_at, c.waiting_at + t.gap_timeout AS held_from,
       c.claimed_by, c.claimed_at, c.lease_until, coalesce(a.arrived, 0) AS arrived, a.arrived_at,
       clock_timestamp() AS now
FROM {schema}.topic t
LEFT JOIN {schema}.key_cursor c ON c.topic = t.name AND c.key = %(key)s
LEFT JOIN {schema}.key_sequence h ON h.topic = t.name AND h.key = %(key)s
CROSS JOIN LATERAL (
    SELECT greatest(c.applied_seq, (SELECT max(l.seq) FROM {schema}.command_log l
                                    WHERE l.topic = c.topic AND l.key = c.key)) AS last_seq) l
LEFT JOIN {schema}.command_log o ON o.topic = c.topic AND o.key = c.key AND o.seq = c.applied_seq + 1
CROSS JOIN LATERAL (
    SELECT count(*) AS pending, min(l.created_at) AS first_at FROM {schema}.command_log l
    WHERE t.numbering = 'given' AND l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq) g
LEFT JOIN LATERAL (
    SELECT a.* FROM {schema}.arrived_key a
    WHERE t.numbering = 'arrival' AND a.topic = t.name AND a.key = %(key)s OFFSET 0) a ON true
WHERE (h.key IS NOT NULL OR a.key IS NOT NULL) AND (%(topic)s::text IS NULL OR t.name = %(topic)s)
ORDER BY t.name
"""

# most: the most characters of a payload; payloads are large, and not everybody may see them on a screen.
_COMMANDS = """
SELECT l.seq, l.name, left(l.payload::text, %(most)s) AS payload, l.idempotency_key, l.created_at,
       k.skipped_by, k.reason AS skipped_because, k.skipped_at,
       o.before IS NOT NULL AS amended, o.before ->> 'name' AS original_name,
       left((o.before -> 'payload')::text, %(most)s) AS original_payload, a.replay_of, a.replayed_as,
       m.from_seq AS merged_from, m.into_seq AS merged_into, m.rule AS merged_by, m.name AS merged_name,
       left(m.payload::text, %(most)s) AS merged_payload
FROM {schema}.command_log l
LEFT JOIN {schema}.skip k ON k.topic = l.topic AND k.key = l.key AND k.seq = l.seq
LEFT JOIN {schema}.merge m ON m.topic = l.topic AND m.key = l.key AND m.seq = l.seq
LEFT JOIN LATERAL (
    SELECT a.before FROM {schema}.operator_action a
    WHERE a.topic = l.topic AND a.key = l.key AND a.action = 'amend' AND a.seq = l.seq
    ORDER BY a.id LIMIT 1) o ON true
CROSS JOIN LATERAL (
    SELECT max(a.seq) FILTER (WHERE a.after -> 'seq' = to_jsonb(l.seq)) AS replay_of,
           (array_agg(a.after -> 'seq') FILTER (WHERE a.seq = l.seq))[1] AS replayed_as
    FROM {schema}.operator_action a
    WHERE a.topic = l.topic AND a.key = l.key AND a.action = 'replay') a
WHERE l.topic = %(topic)s AND l.key = %(key)s
  AND l.seq > %(applied_seq)s - %(limit)s AND l.seq <= coalesce((
      SELECT max(n.seq) FROM (
          SELECT n.seq FROM {schema}.command_log n
          WHERE n.topic = %(topic)s AND n.key = %(key)s AND n.seq > %(applied_seq)s
          ORDER BY n.seq LIMIT %(limit)s) n),
      %(applied_seq)s)
ORDER BY l.seq
"""

# Numbers in payloads may be out of Python's range: they come as text.
_TIMELINE = """
SELECT at, kind, epoch, from_seq, to_seq, what, done_by, os_user, acting_as, started_at, says,
       before::text AS before, after::text AS after
FROM {schema}.timeline(%(topic)s, %(key)s, %(limit)s)
"""

# Of the key, and of its topic: its key is the empty one.
_PAUSES = """
SELECT a.key = '' AS whole, a.reason, a.db_user, a.os_user, a.acting_as
FROM unnest(ARRAY['', %(key)s]) k (key) CROSS JOIN LATERAL (
    SELECT a.* FROM {schema}.operator_action a
    WHERE a.topic = %(topic)s AND a.key = k.key AND a.action = 'pause' ORDER BY a.id DESC LIMIT 1) a
"""


def read_key(
    connection: Connection[Any], schema: str, key: str, topic: str | None, limit: int, most: int | None
) -> list[Row]:
    """Return the key's rows, one for each topic that has it, in one snapshot.

    Args:
        connection, schema: where to read.
        key, topic: which key; a topic of None stands for all of them.
        limit: the most commands before the cursor, and after it; the most turns and actions.
        most: the most characters of a payload; None: all.
    """

    def rows(query: str, parameters: Row) -> list[Row]:
        composed = sql.SQL(query).format(schema=sql.Identifier(schema))
        return fetch(connection, composed, parameters)

    # One snapshot, or the commands might not fit the cursor.
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    found = rows(_KEYS, {"key": key, "topic": topic})
    for each in found:
        parameters = {**each, "limit": limit, "most": 2**31 - 1 if most is None else most}
        each["pauses"] = {row.pop("whole"): row for row in rows(_PAUSES, parameters)}
        each["commands"] = [
            {**row, "state": _command_state(row, each)} for row in rows(_COMMANDS, parameters)
        ]
        each["gaps"] = list(_gaps(each, limit))
        each["timeline"] = rows(_TIMELINE, parameters)
    connection.execute("COMMIT")
    return found


def _command_state(command: Row, key: Row) -> str:
    if command["skipped_by"]:
        return "skipped"
    if command["merged_by"] and command["merged_into"] != command["seq"]:
        return "merged"
    if command["seq"] <= key["applied_seq"]:
        return "applied"
    if command["seq"] > key["applied_seq"] + 1:
        return "pending"
    return "held" if key["state"] == "held" else "retrying" if key["attempts"] else "next"


def _gaps(key: Row, limit: int) -> Iterator[Row]:
    """Yield the numbers, among the commands that are shown, that nobody has appended."""
    applied = key["applied_seq"]
    number = max(key["first_seq"], applied - limit + 1)
    for seq in [*(command["seq"] for command in key["commands"]), max(applied, number - 1) + 1]:
        for first, last, state in (
            (number, min(seq - 1, applied), "skipped"),
            (max(number, applied + 1), seq - 1, "missing"),
        ):
            if first <= last:
                yield {"from_seq": first, "to_seq": last, "state": state}
        number = max(number, seq + 1)
