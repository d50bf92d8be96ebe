-- Returns the next commands of a key as its turn is to take them: see _plan_merges. Internal to the claims. Takes no locks.
--
-- Of numbers that were merged only the last one comes; where they become nothing, with no name: it is done as it is.
CREATE FUNCTION inturn._planned_commands(topic text, key text, applied_seq bigint, epoch bigint, max_commands integer)
RETURNS TABLE (seq bigint, name text, payload jsonb, created_at timestamptz)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
SELECT l.seq, CASE WHEN p.seq IS NULL OR p.into_seq = l.seq THEN coalesce(p.name, l.name) END,
       CASE WHEN p.seq IS NULL OR p.into_seq = l.seq THEN coalesce(p.payload, l.payload) END, l.created_at
FROM inturn._next_commands(topic, key, applied_seq, max_commands) l
LEFT JOIN inturn.merge_plan p
  ON p.topic = _planned_commands.topic AND p.key = _planned_commands.key AND p.epoch = _planned_commands.epoch AND p.seq = l.seq
WHERE p.seq IS NULL OR p.to_seq = l.seq
ORDER BY l.seq
$$;
COMMENT ON FUNCTION inturn._planned_commands IS 'Internal to the claims: the next commands of a key as its turn is to take them.';
