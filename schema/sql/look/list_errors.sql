CREATE FUNCTION inturn.list_errors(
    of_topic text DEFAULT NULL, of_like text DEFAULT NULL, of_error text DEFAULT NULL, max_errors integer DEFAULT 50
) RETURNS TABLE (
    topic text, error text, held bigint, retrying bigint, first_at timestamptz, last_at timestamptz, key text
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
AS $$
-- Lists what held and retrying keys failed with, each error once with how many keys it is on, the most keys first.
-- Takes no locks.
--
-- of_topic: NULL for all. of_like: a LIKE pattern for the key; of_error: a LIKE pattern for the error.
-- error: the first line of it, up to 1,000 characters. first_at, last_at: the earliest and the latest of the failures
-- that are on the keys now. key: one of the keys, that of the latest.
-- Reads every held or retrying key: seconds for a million. Topics that are granted to other operators only are left
-- out; raises IT014 for such a one.
SELECT inturn._require_grant(of_topic, 'operator');
SELECT k.topic, k.error,
       count(*) FILTER (WHERE k.state = 'held') AS held, count(*) FILTER (WHERE k.state = 'retrying') AS retrying,
       min(k.failed_at), max(k.failed_at), (array_agg(k.key ORDER BY k.failed_at DESC, k.key))[1]
FROM (SELECT m.topic, m.key, m.failed_at, inturn._first_line(m.last_error) AS error,
             inturn._state_at(ROW(
                 m.topic, m.key, 0, now.at, 0, m.attempts, 0, m.last_error, m.failed_at, m.held_at,
                 m.paused_at,
                 m.paused_until, m.waiting_at, m.claimed_by, m.claimed_at, m.lease_until,
                 coalesce(m.lost, 0))::inturn.key_cursor, now.at) AS state
      FROM (SELECT clock_timestamp() AS at) now CROSS JOIN inturn.topic t JOIN inturn.key_mark m ON m.topic = t.name
      WHERE (of_topic IS NULL OR t.name = of_topic) AND (of_like IS NULL OR m.key LIKE of_like)
        AND t.name <> ALL ((SELECT inturn._hidden_topics())::text[])) k
WHERE k.state IN ('held', 'retrying') AND (of_error IS NULL OR k.error LIKE of_error)
GROUP BY k.topic, k.error ORDER BY count(*) DESC, max(k.failed_at) DESC, k.topic, k.error
    LIMIT CASE WHEN max_errors < 0 THEN 0 ELSE max_errors END
$$;
COMMENT ON FUNCTION inturn.list_errors IS
    'Lists what held and retrying keys failed with, each error once, and on how many keys.';
