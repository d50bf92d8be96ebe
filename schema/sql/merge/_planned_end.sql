-- Returns the last number of those with which a turn has planned to merge a number; itself when with none, or when the
-- topic is granted to other appliers only. Internal to _apply_alone. Takes no locks.
CREATE FUNCTION inturn._planned_end(topic text, key text, epoch bigint, seq bigint) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
SELECT CASE WHEN max(p.to_seq) IS NOT NULL AND inturn._is_granted(_planned_end.topic, 'applier') THEN max(p.to_seq)
            ELSE _planned_end.seq END
FROM inturn.merge_plan p
WHERE p.topic = _planned_end.topic AND p.key = _planned_end.key AND p.epoch = _planned_end.epoch
  AND p.seq = _planned_end.seq
$$;
COMMENT ON FUNCTION inturn._planned_end IS 'Internal to the appliers: the last number of those that a turn merges.';
