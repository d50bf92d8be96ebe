-- Returns the query by which list_keys reads the keys that are ready, or waiting, by what only a hint tells of: see
-- _hinted_keys. Internal to list_keys: see _keys_query, whose columns and parameters it has.
CREATE FUNCTION inturn._hinted_query(state text, deep boolean, hidden text[]) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT format($query$
SELECT (ROW(t.name, h.key, h.applied_seq, CASE h.state WHEN 'ready' THEN h.since END, h.epoch, 0, 0, NULL, NULL, NULL,
            NULL, NULL, CASE h.state WHEN 'waiting' THEN h.first_at END, NULL, NULL, NULL, 0)::inturn.key_cursor).*,
       h.state, NULL, NULL, CASE h.state WHEN 'waiting' THEN h.first_at ELSE h.since END
FROM inturn.topic t CROSS JOIN LATERAL (
    SELECT w.topic FROM inturn.wake_hint w WHERE w.topic = t.name LIMIT 1) w -- mostly there is none
CROSS JOIN LATERAL (
    SELECT h.*, CASE WHEN t.numbering = 'given' THEN (
               SELECT count(*) FROM inturn.command_log l
               WHERE l.topic = t.name AND l.key = h.key AND l.seq > h.applied_seq) ELSE h.pending END AS lag
    FROM inturn._hinted_keys(w.topic, 50000) h WHERE h.state = %L OFFSET 0) h
WHERE ($1 IS NULL OR t.name = $1) AND t.name <> ALL (%L::text[]) AND ($2 IS NULL OR h.key LIKE $2)
  AND ($3 IS NULL OR h.lag >= $3) AND ($4 IS NULL OR h.first_at <= $4) AND $6 IS NULL%s
$query$, state, hidden, CASE WHEN deep THEN ' AND h.lag > 32' END)
$$;
COMMENT ON FUNCTION inturn._hinted_query IS
    'Internal to list_keys: the query that reads the keys that only hints tell of.';
