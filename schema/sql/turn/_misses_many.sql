-- Says whether more than a million numbers are missing among those that are pending on a key: too many for an entry in
-- skip each. Internal to _record_failure and what cancels the rest of a key. Takes no locks.
--
-- Only callers that number leave any out. What is there is not counted: somebody has appended it.
CREATE FUNCTION inturn._misses_many(topic text, key text, applied_seq bigint) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
SELECT coalesce(CASE WHEN n.ahead > 1000000 THEN n.ahead - 1000000 > (
    SELECT count(*) FROM inturn.command_log l
    WHERE l.topic = _misses_many.topic AND l.key = _misses_many.key AND l.seq > _misses_many.applied_seq) END, false)
FROM (SELECT max(l.seq) - _misses_many.applied_seq AS ahead FROM inturn.command_log l
      WHERE l.topic = _misses_many.topic AND l.key = _misses_many.key) n
$$;
COMMENT ON FUNCTION inturn._misses_many IS
    'Internal: whether too many of the pending numbers of a key are missing to skip each.';
