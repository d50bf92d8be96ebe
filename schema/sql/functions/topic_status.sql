-- Sums up the topics: how many keys are in each state, what is pending, what was applied lately. Takes no locks.
--
-- of_topic: NULL for all. applied and failed count what turns did in the time of `recent` up to now.
-- How many keys are idle it does not say: no index knows. The states are counted from theirs, which for a million keys
-- takes half a second. What is pending is summed over the worst 50,000 keys of a topic; where it has more, each further
-- one counts as one command, and exact is false: more may be pending, and longer.
CREATE FUNCTION inturn.topic_status(of_topic text DEFAULT NULL, recent interval DEFAULT '5 minutes')
RETURNS TABLE (
    topic text, target text, held bigint, retrying bigint, paused bigint, ready bigint,
    pending bigint, oldest_pending_at timestamptz, exact boolean, applied bigint, failed bigint,
    paused_at timestamptz, paused_until timestamptz, waiting bigint, leased bigint
)
LANGUAGE sql STABLE
SET enable_seqscan = off
SET jit = off
AS $$
-- Materialized, and of all topics: with a topic given, a planner may read all its turns by their primary key.
WITH lately AS MATERIALIZED (
    SELECT r.topic, sum(r.to_seq - r.from_seq + 1) AS applied, count(*) FILTER (WHERE r.outcome <> 'applied') AS failed
    FROM inturn.turn r
    WHERE r.finished_at > statement_timestamp() - recent GROUP BY r.topic
)
SELECT t.name, t.target, k.held, k.retrying, k.paused, k.ready,
       p.pending + greatest(k.held + k.retrying + k.paused + k.ready + k.waiting + k.leased - p.keys, 0), p.oldest_pending_at,
       k.held + k.retrying + k.paused + k.ready + k.waiting + k.leased <= p.keys,
       coalesce(y.applied, 0)::bigint, coalesce(y.failed, 0), s.paused_at, s.paused_until, k.waiting, k.leased
FROM inturn.topic t
CROSS JOIN LATERAL (SELECT
    (SELECT count(*) FROM inturn.key_cursor c WHERE c.topic = t.name AND c.held_at IS NOT NULL) AS held,
    (SELECT count(*) FROM inturn.key_cursor c WHERE c.topic = t.name AND c.attempts > 0 AND c.ready_at IS NOT NULL
                                                AND inturn.key_state(c) = 'retrying') AS retrying,
    (SELECT count(*) FROM inturn.key_cursor c WHERE c.topic = t.name AND c.paused_at IS NOT NULL
                                                AND inturn.key_state(c) = 'paused') AS paused,
    (SELECT count(*) FROM inturn.key_cursor c WHERE c.topic = t.name AND c.ready_at IS NOT NULL
                                                AND inturn.key_state(c) = 'ready') AS ready,
    (SELECT count(*) FROM inturn.key_cursor c WHERE c.topic = t.name AND c.waiting_at IS NOT NULL
                                                AND inturn.key_state(c) = 'waiting') AS waiting,
    (SELECT count(*) FROM inturn.key_cursor c WHERE c.topic = t.name AND c.lease_until IS NOT NULL
                                                AND inturn.key_state(c) = 'leased') AS leased) k
CROSS JOIN LATERAL (
    SELECT count(*) AS keys, coalesce(sum(l.pending), 0)::bigint AS pending, min(l.oldest_pending_at) AS oldest_pending_at
    FROM inturn.list_keys(t.name, 'held,waiting,retrying,paused,leased,ready', 50000) l) p
LEFT JOIN inturn.topic s ON s.name = t.name AND s.paused_at IS NOT NULL
                        AND statement_timestamp() < coalesce(s.paused_until, 'infinity')
LEFT JOIN lately y ON y.topic = t.name
WHERE of_topic IS NULL OR t.name = of_topic ORDER BY t.name
$$;
COMMENT ON FUNCTION inturn.topic_status IS 'Sums up the topics: keys by state, what is pending, what was applied lately.';
