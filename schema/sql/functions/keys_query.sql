-- Returns the query by which list_keys reads the keys of one state, from that state's own index. Internal to list_keys.
--
-- state: one of key_state's; or deep: those in the states $6 on which more than 32 commands may be pending. Such a key's
-- known_seq is past its drained_seq, for every 32nd command of a key that is not drained moves known_seq.
-- order_by: what comes before the state's own order, with a comma at its end.
-- numbered: only of topics whose callers number, and only where more than 32 commands are pending, which known_seq does
-- not tell there; all of them, whatever $5.
-- $1 topic, $2 pattern of the key, $3 least number pending, $4 appended by then at the latest: NULL for any; $5 how many.
-- What is pending is looked for by subqueries: from a join, or from EXISTS, a planner may read the whole log.
CREATE FUNCTION inturn.keys_query(state text, order_by text DEFAULT '', numbered boolean DEFAULT false) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
SELECT format($query$
SELECT c.*, CASE c.state WHEN 'held' THEN c.held_at WHEN 'paused' THEN c.paused_at WHEN 'waiting' THEN c.waiting_at
                         WHEN 'leased' THEN c.lease_until ELSE c.ready_at END AS at
FROM inturn.topic t CROSS JOIN LATERAL (
    SELECT c.* FROM %s
    WHERE c.topic = t.name AND %s
      AND ($2 IS NULL OR c.key LIKE $2)
      AND (%s IS NULL OR CASE WHEN t.numbering = 'assigned'
           THEN (SELECT l.seq FROM inturn.command_log l
                 WHERE l.topic = c.topic AND l.key = c.key AND l.seq = c.applied_seq + $3)
           ELSE (SELECT l.seq FROM inturn.command_log l
                 WHERE l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq
                 ORDER BY l.seq OFFSET greatest(%s, 1) - 1 LIMIT 1) END IS NOT NULL)
      AND ($4 IS NULL OR CASE WHEN t.numbering = 'assigned'
           THEN (SELECT l.created_at FROM inturn.command_log l
                 WHERE l.topic = c.topic AND l.key = c.key AND l.seq = c.applied_seq + 1)
           ELSE (SELECT min(l.created_at) FROM inturn.command_log l
                 WHERE l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq) END <= $4)
    %s) c
WHERE ($1 IS NULL OR t.name = $1)%s
$query$,
    CASE WHEN state = 'deep' THEN 'inturn.key_sequence s CROSS JOIN LATERAL ' ELSE '' END
    || '(SELECT c.*, inturn.key_state(c) AS state FROM inturn.key_cursor c'
    -- OFFSET 0, or a planner may begin with the cursors.
    || CASE WHEN state = 'deep' THEN ' WHERE c.topic = s.topic AND c.key = s.key OFFSET 0' ELSE '' END || ') c',
    CASE state
        WHEN 'held' THEN 'c.held_at IS NOT NULL'
        WHEN 'waiting' THEN 'c.waiting_at IS NOT NULL'
        WHEN 'retrying' THEN 'c.attempts > 0 AND c.ready_at IS NOT NULL'
        WHEN 'paused' THEN 'c.paused_at IS NOT NULL'
        WHEN 'leased' THEN 'c.lease_until IS NOT NULL'
        WHEN 'ready' THEN 'c.ready_at IS NOT NULL'
        WHEN 'idle' THEN 'c.ready_at IS NULL AND c.held_at IS NULL'
        ELSE 's.topic = t.name AND s.known_seq > s.drained_seq AND s.known_seq - s.drained_seq >= coalesce($3, 0) - 32'
    END || CASE WHEN state = 'deep' THEN ' AND c.state = ANY ($6)' ELSE format(' AND c.state = %L', state) END,
    n.least, n.least,
    CASE WHEN state <> 'deep' AND NOT numbered THEN format('ORDER BY %s LIMIT $5', order_by || CASE state
        WHEN 'held' THEN 'c.held_at' WHEN 'waiting' THEN 'c.waiting_at' WHEN 'paused' THEN 'c.paused_at'
        WHEN 'leased' THEN 'c.lease_until' WHEN 'idle' THEN 'c.key' ELSE 'c.ready_at' END) END,
    CASE WHEN numbered THEN ' AND t.numbering = ''given''' END)
FROM (SELECT CASE WHEN numbered THEN 'greatest($3, 33)' ELSE '$3' END) n (least)
$$;
COMMENT ON FUNCTION inturn.keys_query IS 'Internal to list_keys: the query that reads the keys of one state.';
