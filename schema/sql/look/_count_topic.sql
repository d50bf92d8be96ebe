-- Counts the keys of a topic by state, and what is pending, by looking at no more than a few times max_rows rows.
-- Internal to topic_metrics.
--
-- since, hints_since: from when on to look for ready keys and for hints: see _walk_from.
-- exact false: it has more keys than that. Then states are filled up to what the planner expects, from the last
-- ANALYZE, and pending is what the keys that were looked at have, and one command for each further key.
-- oldest_at: when the oldest pending command was appended, among the keys looked at: those that have been ready the
-- longest, and those that have stood the longest for another reason. Where callers give the numbers, one that is
-- missing counts as pending. A key that only a hint tells of counts as ready since that was left, or as waiting: see
-- _hinted_keys.
-- Takes no locks.
CREATE FUNCTION inturn._count_topic(
    topic text, most integer, since timestamptz, hints_since timestamptz,
    OUT held bigint, OUT retrying bigint, OUT paused bigint, OUT leased bigint, OUT waiting bigint, OUT ready bigint,
    OUT pending bigint, OUT oldest_at timestamptz, OUT ready_since timestamptz, OUT arrived bigint,
    OUT arrived_at timestamptz, OUT exact boolean
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    looked bigint; keys bigint; hinted record;
BEGIN
    SELECT k.*, k.held + k.retrying + k.paused + k.leased + k.waiting + k.ready
    INTO held, retrying, paused, leased, waiting, ready, ready_since, exact, keys
    FROM inturn._count_keys(topic, most, since) k;
    SELECT count(*), coalesce(sum(p.last - c.applied_seq) FILTER (WHERE p.first_at IS NOT NULL), 0), min(p.first_at)
    INTO looked, pending, oldest_at
    FROM inturn._oldest_tickets(topic, greatest(most / 10, 10), since) c CROSS JOIN LATERAL (
        SELECT (SELECT l.created_at FROM inturn.command_log l
                WHERE l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq ORDER BY l.seq LIMIT 1) AS first_at,
               (SELECT l.seq FROM inturn.command_log l
                WHERE l.topic = c.topic AND l.key = c.key ORDER BY l.seq DESC LIMIT 1) AS last) p;
    exact := exact AND keys <= looked;
    -- What is pending on those that have a ticket was counted.
    SELECT count(*) FILTER (WHERE h.state = 'ready') AS ready, count(*) FILTER (WHERE h.stored = 'held') AS held,
           count(*) FILTER (WHERE h.state = 'waiting') - count(*) FILTER (WHERE h.stored = 'waiting') AS waiting,
           coalesce(sum(h.pending) FILTER (WHERE h.stored = 'idle'), 0) AS pending,
           min(h.since) FILTER (WHERE h.state = 'ready') AS since, min(h.first_at) AS first_at INTO hinted
    FROM inturn._hinted_keys(topic, most + 1, hints_since) h;
    ready := ready + hinted.ready;
    waiting := greatest(waiting + hinted.waiting, 0); held := greatest(held - hinted.held, 0);
    ready_since := least(ready_since, hinted.since);
    oldest_at := least(oldest_at, hinted.first_at);
    exact := exact AND (SELECT count(*)
                        FROM (SELECT FROM inturn.wake_hint h
                              WHERE h.topic = _count_topic.topic AND h.left_at >= hints_since
                              ORDER BY h.left_at, h.key LIMIT most + 1) h) <= most;
    arrived := 0;
    IF inturn._arrival_topics(ARRAY[topic]) <> '{}' THEN
        SELECT count(*), min(a.created_at) INTO arrived, arrived_at
        FROM inturn._oldest_arrivals(topic, most + 1) a;
        oldest_at := least(oldest_at, arrived_at);
    END IF;
    pending := pending + greatest(keys - looked, 0) + hinted.pending + arrived;
END
$$;
COMMENT ON FUNCTION inturn._count_topic IS 'Internal to topic_metrics: a topic''s keys by state, and what is pending.';
