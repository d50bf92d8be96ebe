-- Says whether anything has arrived in a topic that has no number, without a lock or a write. Internal to _number_topic.
--
-- here: the server's system identifier.
CREATE FUNCTION inturn._has_arrivals(topic text, here bigint) RETURNS boolean
LANGUAGE plpgsql STABLE
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    last inturn.arrival_pass;
BEGIN
    SELECT * INTO last FROM inturn.arrival_pass p WHERE p.topic = _has_arrivals.topic ORDER BY p.pass DESC LIMIT 1;
    RETURN EXISTS (SELECT FROM inturn._appeared(topic, CASE WHEN last.cluster = here THEN last.seen END, last.xid));
END
$$;
COMMENT ON FUNCTION inturn._has_arrivals IS 'Internal to the appliers: whether anything has arrived that has no number.';
