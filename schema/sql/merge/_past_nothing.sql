-- Returns the last number after applied_seq up to which a turn has planned that all become nothing; applied_seq itself
-- where the next one does not. Internal to release and _next_planned. Takes no locks.
CREATE FUNCTION inturn._past_nothing(topic text, key text, epoch bigint, applied_seq bigint) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
SELECT coalesce(max(n.seq), _past_nothing.applied_seq) FROM (
    SELECT p.seq, row_number() OVER (ORDER BY p.seq) AS place FROM inturn.merge_plan p
    WHERE p.topic = _past_nothing.topic AND p.key = _past_nothing.key AND p.epoch = _past_nothing.epoch
      AND p.seq > _past_nothing.applied_seq AND p.into_seq IS NULL) n
WHERE n.seq = _past_nothing.applied_seq + n.place
$$;
COMMENT ON FUNCTION inturn._past_nothing IS 'Internal: up to which number a turn has planned that all become nothing.';
