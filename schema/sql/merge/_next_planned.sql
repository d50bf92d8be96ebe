-- Returns the number that the holder of a lease has to report next, by what its turn has planned to merge. Internal to
-- advance and fail. Takes no locks.
CREATE FUNCTION inturn._next_planned(topic text, key text, epoch bigint, applied_seq bigint) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
SELECT coalesce((
    SELECT p.into_seq FROM inturn.merge_plan p
    WHERE p.topic = _next_planned.topic AND p.key = _next_planned.key AND p.epoch = _next_planned.epoch
      AND p.seq = n.seq), n.seq)
FROM (SELECT inturn._past_nothing(topic, key, epoch, applied_seq) + 1 AS seq) n
$$;
COMMENT ON FUNCTION inturn._next_planned IS 'Internal: the number that the holder of a lease has to report next.';
