CREATE FUNCTION inturn.topic_metrics() RETURNS TABLE (metric text, labels jsonb, value double precision)
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
-- Returns what a scrape of metrics says of the topics: keys by state, what is pending and since when, who serves each.
-- Names no key. Takes no locks.
--
-- It looks at some thousand rows at most, shared out over the topics: so a scrape takes tens of milliseconds at a
-- million keys. It does not walk over what turns before the last pass of an applier left, which a held snapshot keeps.
-- Where a topic has more, inturn_counts_exact is 0: the states are filled up to what the planner expects, as of the
-- last ANALYZE, and pending counts one command for each key that was not looked at. Idle keys are not counted: no index
-- lists them.
-- An age is 0 where there is nothing.
WITH budget AS (SELECT least(1000, greatest(3000 / greatest(count(*), 1), 20))::integer AS most FROM inturn.topic),
alive AS MATERIALIZED (
    SELECT p.applier, p.topics, p.down FROM inturn.applier p
    LEFT JOIN pg_stat_activity a ON a.pid = p.backend_pid AND a.datname = current_database()
                                   AND coalesce(a.backend_start, p.backend_start) = p.backend_start
    WHERE inturn._is_alive(p, a.pid, a.state, a.query_start)
),
serving AS MATERIALIZED (SELECT s.topic, count(*) AS appliers FROM alive a CROSS JOIN unnest(a.topics) s (topic)
                         GROUP BY s.topic),
walk AS MATERIALIZED (SELECT w.* FROM inturn._walk_from() w),
down AS MATERIALIZED (
    SELECT d.topic, count(DISTINCT inturn._process_of(a.applier)) AS processes FROM alive a
    CROSS JOIN jsonb_object_keys(a.down) d (topic)
    GROUP BY d.topic)
SELECT v.metric, jsonb_build_object('topic', t.name) || v.more, v.value
FROM inturn.topic t CROSS JOIN budget b
LEFT JOIN walk w ON w.topic = t.name
CROSS JOIN LATERAL inturn._count_topic(
    t.name, b.most, coalesce(w.since, '-infinity'), coalesce(w.hints_since, '-infinity')) c
LEFT JOIN serving s ON s.topic = t.name
LEFT JOIN down d ON d.topic = t.name
CROSS JOIN LATERAL (VALUES
    ('inturn_keys', '{"state": "held"}'::jsonb, c.held::double precision),
    ('inturn_keys', '{"state": "retrying"}', c.retrying),
    ('inturn_keys', '{"state": "paused"}', c.paused),
    ('inturn_keys', '{"state": "leased"}', c.leased),
    ('inturn_keys', '{"state": "waiting"}', c.waiting),
    ('inturn_keys', '{"state": "ready"}', c.ready),
    ('inturn_counts_exact', '{}', c.exact::integer),
    ('inturn_pending_commands', '{}', c.pending),
    ('inturn_arrived_commands', '{}', c.arrived),
    ('inturn_oldest_pending_age_seconds', '{}',
     coalesce(greatest(extract(epoch FROM clock_timestamp() - c.oldest_at), 0), 0)),
    ('inturn_oldest_ready_age_seconds', '{}',
     coalesce(greatest(extract(epoch FROM clock_timestamp() - c.ready_since), 0), 0)),
    ('inturn_oldest_arrived_age_seconds', '{}',
     coalesce(greatest(extract(epoch FROM clock_timestamp() - c.arrived_at), 0), 0)),
    ('inturn_topic_paused', '{}',
     (t.paused_at IS NOT NULL AND clock_timestamp() < coalesce(t.paused_until, 'infinity'))::integer),
    ('inturn_appliers', '{}', coalesce(s.appliers, 0)),
    ('inturn_breakers_open', '{}', coalesce(d.processes, 0))
) v (metric, more, value)
ORDER BY v.metric, t.name
$$;
COMMENT ON FUNCTION inturn.topic_metrics IS 'What a scrape of metrics says of the topics.';
