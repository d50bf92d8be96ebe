-- Returns the keys of a topic that are stored as idle, waiting or held at a gap, and are something else as soon as an
-- applier takes a hint, see _seen_state: whoever lists or counts keys goes by that. Internal to list_keys, topic_status
-- and topic_metrics. Takes no locks.
--
-- most: how many hints are looked at, the oldest first, of those that were left at left_since or later: see _walk_from.
-- since: when the first hint of the key was left. first_at: when the first of what is pending was appended.
CREATE FUNCTION inturn._hinted_keys(topic text, most integer, left_since timestamptz DEFAULT '-infinity')
RETURNS TABLE (key text, since timestamptz, pending bigint, first_at timestamptz, applied_seq bigint, epoch bigint,
               stored text, state text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
SELECT h.key, h.since, p.last_seq - p.applied_seq, p.first_at, p.applied_seq, p.epoch, p.stored, s.state
FROM (SELECT h.key, min(h.left_at) AS since FROM (
          SELECT h.key, h.left_at FROM inturn.wake_hint h WHERE h.topic = _hinted_keys.topic AND h.left_at >= left_since
          ORDER BY h.left_at, h.key LIMIT most) h
      GROUP BY h.key) h
CROSS JOIN LATERAL (
    SELECT c.applied_seq, c.epoch, c.waiting_at, inturn._stored_state(c) AS stored, l.seq AS first_seq,
           l.created_at AS first_at,
           (SELECT l.seq FROM inturn.command_log l
            WHERE l.topic = c.topic AND l.key = c.key ORDER BY l.seq DESC LIMIT 1) AS last_seq
    FROM inturn._find_cursor(_hinted_keys.topic, h.key) c CROSS JOIN LATERAL (
        SELECT l.seq, l.created_at FROM inturn.command_log l
        WHERE l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq ORDER BY l.seq LIMIT 1) l OFFSET 0) p
CROSS JOIN LATERAL (SELECT CASE WHEN p.first_seq = p.applied_seq + 1 THEN 'ready' WHEN p.stored = 'held' THEN 'held'
                                ELSE 'waiting' END AS state) s
WHERE (p.stored IN ('idle', 'waiting') OR p.stored = 'held' AND p.waiting_at IS NOT NULL) AND s.state <> p.stored
$$;
COMMENT ON FUNCTION inturn._hinted_keys IS
    'Internal to whoever lists or counts keys: those of which a hint tells more than what is stored.';
