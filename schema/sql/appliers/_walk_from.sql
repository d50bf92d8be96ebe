-- Returns from when on to look at the tickets of each topic, and at its hints: what turns have left in the indexes
-- before that, and a held snapshot keeps, is not walked over. Internal to whatever looks at them and claims nothing.
-- Takes no locks.
--
-- It is where the next pass would begin, of those that appliers have saved: see _begin_pass. Nothing that can be seen
-- is older; while walks take long, until 10 s after the next one is due, but for tickets of callers who committed late:
-- whoever serves the topic finds them then. A topic is not among them that no pass was saved for, or one in the future,
-- as after the clock was set back: look at everything.
-- Each hash is found from its newest row: older ones, which a snapshot may keep, are not walked over.
CREATE FUNCTION inturn._walk_from() RETURNS TABLE (topic text, since timestamptz, hints_since timestamptz)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
WITH RECURSIVE saved AS (
    (SELECT p.topics_hash, p.topics, p.saved_at, p.pass FROM inturn.saved_pass p
     ORDER BY p.topics_hash DESC, p.saved_at DESC LIMIT 1)
    UNION ALL
    SELECT n.* FROM saved s CROSS JOIN LATERAL (
        SELECT p.topics_hash, p.topics, p.saved_at, p.pass FROM inturn.saved_pass p
        WHERE p.topics_hash < s.topics_hash ORDER BY p.topics_hash DESC, p.saved_at DESC LIMIT 1) n
)
SELECT t.topic, max(CASE WHEN clock_timestamp() < (s.pass).walk_at + interval '10 s'
                         THEN coalesce(f.start, (s.pass).seen_to) ELSE coalesce(f.hand, (s.pass).walked_from) END),
       max((s.pass).hint_at)
FROM saved s CROSS JOIN LATERAL unnest(s.topics) t (topic)
LEFT JOIN LATERAL unnest((s.pass).found, (s.pass).hands, (s.pass).starts) f (topic, hand, start) ON f.topic = t.topic
WHERE s.saved_at <= clock_timestamp() GROUP BY t.topic
$$;
COMMENT ON FUNCTION inturn._walk_from IS 'Internal: from when on to look at the tickets and the hints of each topic.';
