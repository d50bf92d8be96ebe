CREATE FUNCTION inturn.topic_status(of_topic text DEFAULT NULL, recent interval DEFAULT '5 minutes')
RETURNS TABLE (
    topic text, target text, held bigint, retrying bigint, paused bigint, ready bigint,
    pending bigint, oldest_pending_at timestamptz, exact boolean, applied bigint, failed bigint,
    paused_at timestamptz, paused_until timestamptz, waiting bigint, leased bigint, arrived bigint,
    arrived_at timestamptz
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
-- Sums up the topics: how many keys are in each state, what is pending, what was applied lately. Takes no locks.
--
-- of_topic: NULL for all. applied and failed count what turns did in the time of `recent` up to now. It does not count
-- idle keys: no index lists them. Up to 100,000 keys of each state are counted; where there are more, it is as many as
-- the planner expects, from the last ANALYZE (see _count_keys).
-- What is pending is summed over the worst 20,000 keys of a topic; where it has more, each further one counts as one
-- command, and exact is false: more may be pending, and longer.
-- A key that only a hint tells of counts as ready, or waiting: see _hinted_keys.
-- arrived counts the commands that have no number yet, arrived_at is when the first of them was appended.
-- Topics that are granted to other operators only are left out; raises IT014 for such a one.
-- Materialized, and of all topics: with a topic given, a planner may read all its turns by their primary key.
SELECT inturn._require_grant(of_topic, 'operator');
WITH lately AS MATERIALIZED (
    SELECT r.topic, sum(r.to_seq - r.from_seq + 1) AS applied,
           count(*) FILTER (WHERE r.outcome NOT IN ('applied', 'idle')) AS failed
    FROM inturn.turn r
    WHERE r.finished_at > statement_timestamp() - least(greatest(recent, '-1000 years'), '1000 years') GROUP BY r.topic
)
SELECT t.name, t.target, greatest(k.held - h.held, 0), k.retrying, k.paused, k.ready + h.ready,
       p.pending + greatest(k.held + k.retrying + k.paused + k.ready + h.keys + k.waiting + k.leased - p.keys, 0),
       least(p.oldest_pending_at, h.first_at),
       k.exact AND k.held + k.retrying + k.paused + k.ready + h.keys + k.waiting + k.leased <= p.keys,
       coalesce(y.applied, 0)::bigint, coalesce(y.failed, 0), s.paused_at, s.paused_until,
       greatest(k.waiting + h.waiting, 0), k.leased,
       a.arrived, a.arrived_at
FROM inturn.topic t
CROSS JOIN LATERAL inturn._count_keys(t.name, 100000, '-infinity') k
CROSS JOIN LATERAL (
    SELECT count(*) AS keys, coalesce(sum(l.pending), 0)::bigint AS pending,
           min(l.oldest_pending_at) AS oldest_pending_at
    FROM inturn.list_keys(t.name, 'held,waiting,retrying,paused,leased,ready', 20000) l) p
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE h.stored = 'idle') AS keys, count(*) FILTER (WHERE h.state = 'ready') AS ready,
           count(*) FILTER (WHERE h.state = 'waiting') - count(*) FILTER (WHERE h.stored = 'waiting') AS waiting,
           count(*) FILTER (WHERE h.stored = 'held') AS held, min(h.first_at) AS first_at
    FROM inturn._hinted_keys(t.name, 50000) h) h
CROSS JOIN LATERAL (
    SELECT count(*) AS arrived, min(i.created_at) AS arrived_at FROM inturn.intake i WHERE i.topic = t.name) a
LEFT JOIN inturn.topic s ON s.name = t.name AND s.paused_at IS NOT NULL
                        AND clock_timestamp() < coalesce(s.paused_until, 'infinity')
LEFT JOIN lately y ON y.topic = t.name
WHERE (of_topic IS NULL OR t.name = of_topic) AND t.name <> ALL ((SELECT inturn._hidden_topics())::text[])
ORDER BY t.name
$$;
COMMENT ON FUNCTION inturn.topic_status IS
    'Sums up the topics: keys by state, what is pending, what was applied lately.';
