-- Returns where an applier begins in a topic, so that many appliers do not claim in the same place: at since, or some
-- tickets on from there. Internal to the appliers. Takes no locks.
--
-- since: where its pass may begin. Each claim steps over all tickets that others have locked, which costs more than to
-- apply one: with thirty appliers at work, most of what they do. So each begins somewhere in as many tickets as they
-- hold together, and at since when there are fewer. The next visit begins elsewhere: no key waits for long.
CREATE FUNCTION inturn._spread_out(topic text, since timestamptz, max_keys integer) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
AS $$
DECLARE
    now constant timestamptz := clock_timestamp();
    -- Only claims lock rows of this table without changing them, except for an operator now and then.
    others constant bigint := (SELECT count(*) FROM pg_locks l WHERE l.relation = 'inturn.ticket'::regclass
                               AND l.mode = 'RowShareLock' AND l.granted AND l.pid <> pg_backend_pid());
BEGIN
    IF others < 2 THEN
        RETURN since;
    END IF;
    RETURN coalesce((SELECT t.ready_at FROM inturn.ticket t
                     WHERE t.topic COLLATE "POSIX" = _spread_out.topic AND t.ready_at >= since AND t.ready_at <= now
                     ORDER BY t.ready_at OFFSET floor(random() * (others + 1))::bigint * greatest(max_keys, 0) LIMIT 1), since);
END
$$;
COMMENT ON FUNCTION inturn._spread_out IS 'Internal to the appliers: where an applier begins in a topic, so that many do not claim in the same place.';
