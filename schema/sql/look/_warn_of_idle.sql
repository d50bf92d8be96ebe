-- Warns that idle keys were looked for among some of a topic's keys only. Internal to list_keys. Takes no locks.
--
-- look: among how many of those that begin as the pattern does, see _keys_query; NULL: all.
CREATE FUNCTION inturn._warn_of_idle(of_topic text, of_like text, hidden text[], look bigint) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_sort = off
SET plan_cache_mode = force_custom_plan -- which begins and ends where the prefix does
AS $$
DECLARE
    prefix constant text := inturn._like_prefix(of_like);
    longer text;
BEGIN
    SELECT t.name INTO longer FROM inturn.topic t CROSS JOIN LATERAL (
        SELECT FROM inturn.key_sequence f WHERE f.topic = t.name AND f.key ^@ prefix
        ORDER BY f.key OFFSET look LIMIT 1) f
    WHERE look IS NOT NULL AND (of_topic IS NULL OR t.name = of_topic) AND t.name <> ALL (hidden) LIMIT 1;
    IF FOUND THEN
        RAISE WARNING USING MESSAGE = format(
            'more than %s keys in topic %L%s: idle ones were looked for among the first %1$s of each topic', look,
            longer, CASE WHEN prefix <> '' THEN format(' begin with %L', prefix) ELSE '' END);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._warn_of_idle IS 'Internal to list_keys: warns that not all keys were looked at.';
