-- Returns the query by which list_keys reads the keys of one state, from that state's own index; with the ready and the
-- waiting ones those that only hints tell of. Internal to list_keys.
--
-- state: one of key_state's, or arrived. order_by: what comes before the state's own order, with a comma at its end.
-- hidden: the topics to leave out. deep: only keys on which more than 32 commands are pending, all of them, whatever
-- $5. look: at how many keys of the state in a topic it looks at most, the first ones; and for idle ones, which no
-- index lists, at how many of those that begin as the pattern does. NULL: at all.
-- $1 topic, $2 pattern of the key, $3 least number pending, $4 appended by then at the latest, $6 pattern of the
-- error's first line: NULL for any; $5 how many; $7 as of when; $8 what _unwoken_keys returns.
-- A key that has a ticket is read from that and its marks, as key_cursor has it: a probe for each that is marked.
-- What is pending is looked for by subqueries: from a join, or from EXISTS, a planner may read the whole log.
CREATE FUNCTION inturn._keys_query(state text, order_by text DEFAULT '', deep boolean DEFAULT false,
                                   hidden text[] DEFAULT '{}', look bigint[] DEFAULT NULL)
RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT CASE state WHEN 'arrived' THEN inturn._arrived_query(deep, hidden) ELSE format($query$
SELECT c.*, NULL::bigint AS arrived, NULL::timestamptz AS arrived_at,
       CASE c.state WHEN 'held' THEN c.held_at WHEN 'paused' THEN c.paused_at WHEN 'waiting' THEN c.waiting_at
                         WHEN 'leased' THEN c.lease_until ELSE c.ready_at END AS at
FROM inturn.topic t CROSS JOIN LATERAL (
    SELECT c.* FROM (%s AND ($2 IS NULL OR f.key LIKE $2)%s ORDER BY %s) c
    WHERE c.state = %L
      AND ($6 IS NULL OR inturn._first_line(c.last_error) LIKE $6)
      AND (%s IS NULL OR CASE WHEN t.numbering <> 'given'
           THEN (SELECT l.seq FROM inturn.command_log l
                 WHERE l.topic = c.topic AND l.key = c.key AND l.seq = c.applied_seq + %s)
           ELSE (SELECT l.seq FROM inturn.command_log l
                 WHERE l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq
                 ORDER BY l.seq OFFSET greatest(%s, 1) - 1 LIMIT 1) END IS NOT NULL)
      AND ($4 IS NULL OR CASE WHEN t.numbering <> 'given'
           THEN (SELECT l.created_at FROM inturn.command_log l
                 WHERE l.topic = c.topic AND l.key = c.key AND l.seq = c.applied_seq + 1)
           ELSE (SELECT min(l.created_at) FROM inturn.command_log l
                 WHERE l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq) END <= $4)
    %s) c
WHERE ($1 IS NULL OR t.name = $1) AND t.name <> ALL (%L::text[])
$query$,
    CASE state WHEN 'idle' THEN $source$
        SELECT c.*, inturn._state_at(c, $7) AS state FROM (
            SELECT f.topic, f.key FROM inturn.key_sequence f
            WHERE f.topic = t.name AND f.key ^@ inturn._like_prefix($2)
            ORDER BY f.key$source$ || coalesce(' LIMIT ' || look[2], '') || $source$) f
        CROSS JOIN LATERAL (SELECT c.* FROM inturn.key_cursor c WHERE c.topic = f.topic AND c.key = f.key OFFSET 0) c
        WHERE true$source$
    ELSE format($source$
        SELECT (c.cursor).*, inturn._state_at(c.cursor, $7) AS state
        FROM %s CROSS JOIN LATERAL (SELECT ROW(
            i.topic, i.key, i.applied_seq, nullif(i.ready_at, 'infinity'), i.epoch, coalesce(m.attempts, 0),
            i.empty_turns,
            m.last_error, m.failed_at, m.held_at, m.paused_at, m.paused_until, m.waiting_at,
            m.claimed_by, m.claimed_at, m.lease_until, coalesce(m.lost, 0))::inturn.key_cursor AS cursor) c
        WHERE f.topic%s = t.name AND %s$source$,
        CASE state WHEN 'ready' THEN 'inturn.ticket f CROSS JOIN LATERAL (SELECT f.*) i LEFT JOIN LATERAL (
            SELECT m.* FROM inturn.key_mark m
            WHERE f.marked AND m.topic = f.topic AND m.key = f.key AND m.epoch = f.epoch LIMIT 1) m ON true'
        ELSE 'inturn.key_mark f CROSS JOIN LATERAL (SELECT f.*) m CROSS JOIN LATERAL (
            SELECT i.* FROM inturn.ticket i
            WHERE i.topic = f.topic AND i.key = f.key AND i.epoch = f.epoch AND i.marked LIMIT 1) i' END,
        CASE state WHEN 'ready' THEN ' COLLATE "POSIX"' END,
        CASE state WHEN 'held' THEN 'f.held_at IS NOT NULL'
                   WHEN 'waiting' THEN 'f.waiting_at IS NOT NULL'
                   WHEN 'retrying' THEN 'f.attempts > 0 AND f.held_at IS NULL'
                   WHEN 'paused' THEN 'f.paused_at IS NOT NULL'
                   WHEN 'leased' THEN 'f.lease_until IS NOT NULL'
                   ELSE 'f.ready_at < ''infinity''' END) END,
    CASE WHEN state IN ('held', 'waiting', 'idle') THEN ' AND CASE WHEN $8 <> ''{}'' THEN $8 ? '
        'pg_catalog.jsonb_build_array(f.topic, f.key)::text ELSE false END IS FALSE' END,
    CASE WHEN state IN ('ready', 'idle') THEN '' ELSE order_by END || CASE state
        WHEN 'held' THEN 'f.held_at' WHEN 'waiting' THEN 'f.waiting_at' WHEN 'paused' THEN 'f.paused_at'
        WHEN 'leased' THEN 'f.lease_until' WHEN 'idle' THEN 'f.key' ELSE 'f.ready_at' END
        || CASE WHEN state <> 'idle' AND look[1] IS NOT NULL THEN ' LIMIT ' || look[1] ELSE '' END,
    state, n.least, n.least, n.least,
    CASE WHEN NOT deep THEN 'LIMIT $5' END, hidden) END
    || CASE WHEN state IN ('ready', 'waiting') THEN 'UNION ALL' || inturn._hinted_query(state, deep, hidden) ELSE '' END
FROM (SELECT CASE WHEN deep THEN 'greatest($3, 33)' ELSE '$3' END) n (least)
$$;
COMMENT ON FUNCTION inturn._keys_query IS 'Internal to list_keys: the query that reads the keys of one state.';
