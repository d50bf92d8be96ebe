-- Returns how many commands of a key a turn skipped, from seq on; none of a topic that is granted to other appliers
-- only. Internal to the appliers. Takes no locks.
CREATE FUNCTION inturn._count_skipped(topic text, key text, seq bigint, epoch bigint) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
SELECT CASE WHEN count(*) > 0 AND inturn._is_granted(_count_skipped.topic, 'applier') THEN count(*) ELSE 0 END
FROM inturn.skip s
WHERE s.topic = _count_skipped.topic AND s.key = _count_skipped.key AND s.seq >= _count_skipped.seq
  AND s.epoch = _count_skipped.epoch
$$;
COMMENT ON FUNCTION inturn._count_skipped IS 'Internal to the appliers: how many commands a turn skipped.';
