-- Counts the keys of a topic by state, by looking at no more than so many keys of each kind. Internal to topic_metrics
-- and topic_status. Takes no locks.
--
-- since: from when on to look for the ready ones: see _walk_from. ready_since: since when the first of them is.
-- A key without a mark is ready within a second, so tickets of later times are not looked at: leases that were given
-- back lie there. The exception is a key that was put off because nothing can be recorded of it: it counts when it is
-- ready.
-- exact false: there are more. Those are as many as the planner expects, from the last ANALYZE, shared out over the
-- states of which there are more.
CREATE FUNCTION inturn._count_keys(
    topic text, most integer, since timestamptz,
    OUT held bigint, OUT retrying bigint, OUT paused bigint, OUT leased bigint, OUT waiting bigint, OUT ready bigint,
    OUT ready_since timestamptz, OUT exact boolean
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    now constant timestamptz := clock_timestamp();
    due record; mark record; tickets bigint; share bigint := 0;
BEGIN
    SELECT count(*) AS tickets, count(*) FILTER (WHERE NOT c.marked) AS ready,
           min(c.ready_at) FILTER (WHERE c.ready_at <= now) AS since,
           array_agg(c.key) FILTER (WHERE c.marked) AS keys, array_agg(c.epoch) FILTER (WHERE c.marked) AS epochs
    INTO due
    FROM (SELECT c.* FROM inturn.ticket c
          WHERE c.topic COLLATE "POSIX" = _count_keys.topic AND c.ready_at >= _count_keys.since
            AND c.ready_at <= now + interval '1 s'
          ORDER BY c.ready_at LIMIT most + 1) c;
    SELECT count(*) AS keys, count(*) FILTER (WHERE m.state = 'held') AS held,
           count(*) FILTER (WHERE m.state = 'retrying') AS retrying,
           count(*) FILTER (WHERE m.state = 'paused') AS paused,
           count(*) FILTER (WHERE m.state = 'leased') AS leased,
           count(*) FILTER (WHERE m.state = 'waiting') AS waiting,
           count(*) FILTER (WHERE m.state = 'ready') AS ready,
           -- Of these there are more.
           (count(m.held_at) > most)::integer AS more_held, (count(m.paused_at) > most)::integer AS more_paused,
           (count(m.waiting_at) > most)::integer AS more_waiting,
           (count(*) FILTER (WHERE m.lease_until > now) > most)::integer AS more_leased,
           (count(*) FILTER (WHERE m.attempts > 0 AND m.held_at IS NULL AND m.ready_at > now) > most)::integer
               AS more_retrying
    INTO mark
    FROM (SELECT m.*, inturn._state_at(ROW(m.topic, m.key, 0, now, 0, m.attempts, 0, m.last_error, m.failed_at,
                                           m.held_at, m.paused_at, m.paused_until, m.waiting_at, m.claimed_by,
                                           m.claimed_at, m.lease_until, m.lost)::inturn.key_cursor, now) AS state
          FROM (SELECT m.* FROM inturn._standing_marks(topic, most + 1, now) m
                UNION
                SELECT m.* FROM unnest(due.keys, due.epochs) d (key, epoch) CROSS JOIN LATERAL (
                    SELECT m.* FROM inturn.key_mark m
                    WHERE m.topic = _count_keys.topic AND m.key = d.key AND m.epoch = d.epoch LIMIT 1) m) m) m;
    exact := due.tickets <= most
        AND mark.more_held + mark.more_retrying + mark.more_paused + mark.more_leased + mark.more_waiting = 0;
    IF NOT exact THEN
        SELECT e.tickets, greatest(e.marks - mark.keys, 0) / greatest(
            mark.more_held + mark.more_retrying + mark.more_paused + mark.more_leased + mark.more_waiting, 1)
        INTO tickets, share FROM inturn._estimate_keys(topic) e;
    END IF;
    held := mark.held + share * mark.more_held; retrying := mark.retrying + share * mark.more_retrying;
    paused := mark.paused + share * mark.more_paused; leased := mark.leased + share * mark.more_leased;
    waiting := mark.waiting + share * mark.more_waiting; ready := mark.ready + due.ready;
    IF due.tickets > most THEN
        ready := greatest(ready, tickets - held - retrying - paused - leased - waiting);
    END IF;
    ready_since := due.since;
END
$$;
COMMENT ON FUNCTION inturn._count_keys IS 'Internal to topic_metrics: a topic''s keys by state.';
