-- Returns tickets of a topic: those of the keys that have been ready, held, waiting, paused, leased and retrying the
-- longest, so many of each kind, and no key twice. Internal to topic_metrics. Takes no locks.
--
-- since: from when on to look for the ready ones: see _walk_from.
CREATE FUNCTION inturn._oldest_tickets(topic text, most integer, since timestamptz) RETURNS SETOF inturn.ticket
LANGUAGE plpgsql STABLE -- before 18 a function in SQL would be planned anew for each topic
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    now constant timestamptz := clock_timestamp();
BEGIN
    RETURN QUERY
    SELECT c.* FROM inturn._standing_marks(_oldest_tickets.topic, most, now) m CROSS JOIN LATERAL (
        SELECT c.* FROM inturn.ticket c WHERE c.topic = m.topic AND c.key = m.key AND c.epoch = m.epoch LIMIT 1) c
    UNION
    (SELECT c.* FROM inturn.ticket c
     WHERE c.topic COLLATE "POSIX" = _oldest_tickets.topic AND c.ready_at >= since
       AND c.ready_at <= now + interval '1 s'
     ORDER BY c.ready_at LIMIT most);
END
$$;
COMMENT ON FUNCTION inturn._oldest_tickets IS
    'Internal to topic_metrics: tickets of the keys that have stood the longest.';
