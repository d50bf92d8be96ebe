-- Returns so many commands of a topic that have no number yet: what was left behind, then those that the next pass of
-- an applier looks at, the oldest transactions first, but for what the last pass saw running. Internal to
-- topic_metrics. Takes no locks.
--
-- As a pass does, it does not walk over what a held snapshot keeps of commands that were numbered: see _number_topic.
CREATE FUNCTION inturn._oldest_arrivals(topic text, most integer) RETURNS SETOF inturn.intake
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    last constant inturn.arrival_pass := inturn._last_arrival_pass(topic);
    left_behind bigint;
BEGIN
    RETURN QUERY SELECT i.* FROM inturn.intake i
    WHERE i.topic = _oldest_arrivals.topic AND i.left_because IS NOT NULL ORDER BY i.key, i.id LIMIT most;
    GET DIAGNOSTICS left_behind = ROW_COUNT;
    RETURN QUERY SELECT i.* FROM (
        SELECT a.tid FROM inturn._appeared(_oldest_arrivals.topic, last.seen, last.own) a LIMIT most - left_behind) a
    CROSS JOIN LATERAL (SELECT i.* FROM inturn.intake i WHERE i.ctid = a.tid OFFSET 0) i;
END
$$;
COMMENT ON FUNCTION inturn._oldest_arrivals IS
    'Internal to topic_metrics: commands of a topic that have no number yet.';
