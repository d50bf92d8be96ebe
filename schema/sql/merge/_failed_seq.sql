-- Returns the first number of those that a turn took together as the command that failed. Internal to fail. Takes no
-- locks.
--
-- failed_seq: the number that the handler had. What was merged into it, and what became nothing just before it, was not
-- done either: it is taken as it is from now on.
CREATE FUNCTION inturn._failed_seq(topic text, key text, epoch bigint, from_seq bigint,
                                   failed_seq bigint) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
SELECT coalesce(min(n.seq), _failed_seq.failed_seq) FROM (
    SELECT p.seq, row_number() OVER (ORDER BY p.seq DESC) AS place FROM inturn.merge_plan p
    WHERE p.topic = _failed_seq.topic AND p.key = _failed_seq.key AND p.epoch = _failed_seq.epoch
      AND p.seq >= _failed_seq.from_seq AND p.seq < _failed_seq.failed_seq
      AND (p.into_seq IS NULL OR p.into_seq = _failed_seq.failed_seq)) n
WHERE n.seq = _failed_seq.failed_seq - n.place
$$;
COMMENT ON FUNCTION inturn._failed_seq IS 'Internal to fail: the first number of those that a turn took together.';
