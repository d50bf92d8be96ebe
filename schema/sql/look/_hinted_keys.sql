-- Returns the idle keys of a topic of which a hint says that they may have to be woken, and that have something
-- pending: they are ready as soon as an applier looks (see _take_hints), so whoever counts the ready ones counts them.
-- Internal to list_keys, topic_status and topic_metrics. Takes no locks.
--
-- most: how many hints are looked at, the oldest first, of those that were left at left_since or later: see _walk_from.
-- since: when the first hint of the key was left.
CREATE FUNCTION inturn._hinted_keys(topic text, most integer, left_since timestamptz DEFAULT '-infinity')
RETURNS TABLE (key text, since timestamptz, pending bigint, first_at timestamptz, applied_seq bigint, epoch bigint)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
SELECT h.key, h.since, l.last_seq - c.applied_seq, l.first_at, c.applied_seq, c.epoch
FROM (SELECT h.key, min(h.left_at) AS since FROM (
          SELECT h.key, h.left_at FROM inturn.wake_hint h WHERE h.topic = _hinted_keys.topic AND h.left_at >= left_since
          ORDER BY h.left_at, h.key LIMIT most) h
      GROUP BY h.key) h
CROSS JOIN LATERAL inturn._find_cursor(_hinted_keys.topic, h.key) c
CROSS JOIN LATERAL (
    SELECT (SELECT l.created_at FROM inturn.command_log l
            WHERE l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq ORDER BY l.seq LIMIT 1) AS first_at,
           (SELECT l.seq FROM inturn.command_log l
            WHERE l.topic = c.topic AND l.key = c.key ORDER BY l.seq DESC LIMIT 1) AS last_seq OFFSET 0) l
WHERE inturn._state_at(c, statement_timestamp()) = 'idle' AND l.last_seq > c.applied_seq -- no time makes a key idle
$$;
COMMENT ON FUNCTION inturn._hinted_keys IS
    'Internal to whoever lists or counts the ready keys: idle ones that an applier will wake.';
