-- Says whether anything in a topic's intake is to be looked at now, without a lock or a write. Internal to _number_topic.
--
-- here: the server's system identifier. What was left behind is looked at ten times a second.
CREATE FUNCTION inturn._has_arrivals(topic text, here bigint) RETURNS boolean
LANGUAGE plpgsql STABLE
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
DECLARE
    last inturn.arrival_pass;
BEGIN
    SELECT * INTO last FROM inturn.arrival_pass p WHERE p.topic = _has_arrivals.topic ORDER BY p.pass DESC LIMIT 1;
    RETURN EXISTS (SELECT FROM inturn._appeared(topic, CASE WHEN last.cluster = here THEN last.seen END, last.xid))
        OR (clock_timestamp() - last.looked_back_at < interval '100 ms') IS NOT TRUE
           -- In the order of their own index: without statistics the planner takes the primary key's for as good.
           AND (SELECT i.key FROM inturn.intake i
                WHERE i.topic = _has_arrivals.topic AND i.left_because IS NOT NULL ORDER BY i.key LIMIT 1) IS NOT NULL;
END
$$;
COMMENT ON FUNCTION inturn._has_arrivals IS 'Internal to the appliers: whether anything has arrived that is to be looked at.';
