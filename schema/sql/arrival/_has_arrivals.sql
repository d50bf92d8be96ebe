-- Says whether anything in a topic's intake is to be looked at now, without a lock or a write. Internal to
-- _number_topic.
--
-- What was left behind is looked at ten times a second. While there is a plan nothing is looked for: what its passes
-- have taken lies before what is left.
CREATE FUNCTION inturn._has_arrivals(last inturn.arrival_pass) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
BEGIN
    RETURN last.planned IS NOT NULL OR EXISTS (SELECT FROM inturn._appeared(last.topic, last.seen, last.own))
        OR (clock_timestamp() - last.looked_back_at < interval '100 ms') IS NOT TRUE
           -- In the order of their own index: without statistics the planner takes the primary key's for as good.
           AND (SELECT i.key FROM inturn.intake i
                WHERE i.topic = last.topic AND i.left_because IS NOT NULL ORDER BY i.key LIMIT 1) IS NOT NULL;
END
$$;
COMMENT ON FUNCTION inturn._has_arrivals IS
    'Internal to the appliers: whether anything has arrived that is to be looked at.';
