-- Returns where an applier begins in a topic, so that many appliers do not claim in the same place: at since, or some
-- tickets on from there. Internal to the appliers. Takes no locks.
--
-- since: where its pass may begin. width: how many keys its batches have. Each claim steps over all tickets that others
-- have locked or have just applied, which costs more than to apply one: with thirty appliers at work, most of what they
-- do. So each begins somewhere in sixteen times as many tickets as they hold together (a visit takes several batches),
-- or in all of them when there are fewer. The next visit begins elsewhere: no key waits for long, as the batches of
-- slow handlers are narrow.
-- How many tickets lie ahead is estimated by the times of the first ones, and a place among them is found by its time:
-- whoever counted them would read them all.
CREATE FUNCTION inturn._spread_out(topic text, since timestamptz, width integer) RETURNS timestamptz
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
                               AND l.mode = 'RowShareLock' AND l.granted AND l.pid <> pg_backend_pid()
                               -- In a copy of the database its number is the same.
                               AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()));
    first_at timestamptz;
    ahead double precision;
    place timestamptz;
BEGIN
    IF others < 2 THEN
        RETURN since;
    END IF;
    -- In seconds, and not beyond now: there is no end to what the first times may lie apart.
    SELECT min(t.ready_at), random() * least(extract(epoch FROM now - min(t.ready_at))::double precision,
               extract(epoch FROM max(t.ready_at) - min(t.ready_at)) / greatest(count(*) - 1, 1) * greatest(width, 0)
                   * 16 * (others + 1))
    INTO first_at, ahead FROM (
        SELECT t.ready_at FROM inturn.ticket t
        WHERE t.topic COLLATE "POSIX" = _spread_out.topic AND t.ready_at >= since AND t.ready_at <= now
        ORDER BY t.ready_at LIMIT 50) t;
    FOR attempt IN 1 .. 6 LOOP
        SELECT t.ready_at INTO place FROM inturn.ticket t
        WHERE t.topic COLLATE "POSIX" = _spread_out.topic AND t.ready_at >= first_at + make_interval(secs => ahead)
          AND t.ready_at <= now ORDER BY t.ready_at LIMIT 1;
        EXIT WHEN FOUND;
        ahead := ahead / 2; -- the queue is shorter
    END LOOP;
    RETURN coalesce(place, since);
END
$$;
COMMENT ON FUNCTION inturn._spread_out IS
    'Internal to the appliers: where an applier begins in a topic, so that many do not claim in the same place.';
