-- Warns that not all keys of a state were looked at, where a topic has more of them. Internal to list_keys. Takes no
-- locks.
--
-- state: as _keys_query has it; idle ones are looked for among those that begin as the pattern does. look: see
-- _keys_query.
CREATE FUNCTION inturn._warn_of_more(of_topic text, of_like text, hidden text[], state text, look bigint[]) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
SET plan_cache_mode = force_custom_plan -- which reads one index only, and begins and ends where the prefix does
AS $$
DECLARE
    prefix constant text := inturn._like_prefix(of_like);
    most constant bigint := look[CASE state WHEN 'idle' THEN 2 ELSE 1 END];
    longer text;
BEGIN
    IF most IS NULL OR state = 'arrived' THEN
        RETURN;
    ELSIF state = 'idle' THEN
        SELECT t.name INTO longer FROM inturn.topic t CROSS JOIN LATERAL (
            SELECT FROM inturn.key_sequence f WHERE f.topic = t.name AND f.key ^@ prefix
            ORDER BY f.key OFFSET most LIMIT 1) f
        WHERE (of_topic IS NULL OR t.name = of_topic) AND t.name <> ALL (hidden) LIMIT 1;
    ELSIF state = 'ready' THEN
        SELECT t.name INTO longer FROM inturn.topic t CROSS JOIN LATERAL (
            SELECT FROM inturn.ticket f
            WHERE f.topic COLLATE "POSIX" = t.name AND f.ready_at < 'infinity'
              AND (of_like IS NULL OR f.key LIKE of_like)
            ORDER BY f.ready_at OFFSET most LIMIT 1) f
        WHERE (of_topic IS NULL OR t.name = of_topic) AND t.name <> ALL (hidden) LIMIT 1;
    ELSE
        SELECT t.name INTO longer FROM inturn.topic t CROSS JOIN LATERAL (
            SELECT FROM inturn.key_mark f
            WHERE f.topic = t.name AND (of_like IS NULL OR f.key LIKE of_like) AND CASE state
                WHEN 'held' THEN f.held_at IS NOT NULL
                WHEN 'waiting' THEN f.waiting_at IS NOT NULL
                WHEN 'paused' THEN f.paused_at IS NOT NULL
                WHEN 'leased' THEN f.lease_until IS NOT NULL
                ELSE f.attempts > 0 AND f.held_at IS NULL END
            OFFSET most LIMIT 1) f
        WHERE (of_topic IS NULL OR t.name = of_topic) AND t.name <> ALL (hidden) LIMIT 1;
    END IF;
    IF longer IS NULL THEN
        RETURN;
    END IF;
    RAISE WARNING USING MESSAGE = CASE state WHEN 'idle'
        THEN format('more than %s keys in topic %L%s: idle ones were looked for among the first %1$s of each topic',
                    most, longer, CASE WHEN prefix <> '' THEN format(' begin with %L', prefix) ELSE '' END)
        ELSE format('more than %s %s keys in topic %L: only the first %1$s of each topic were looked at', most, state,
                    longer) END;
END
$$;
COMMENT ON FUNCTION inturn._warn_of_more IS 'Internal to list_keys: warns that not all keys were looked at.';
