-- Suggests existing keys for a mistyped one: the same in another topic; the same except for case, spaces or a typing
-- error (first two characters exchanged or one too many, then one missing or wrong); one that begins with it; its
-- neighbours that begin as it does. Internal to why. Takes no locks.
--
-- of_topic: NULL for all topics; those that are granted to other operators only are left out. Probes of the primary key
-- for each topic, so this stays quick with millions of keys; those for a missing or wrong character are thousands, and
-- made in the topic that is named, or in all of up to twenty.
CREATE FUNCTION inturn._similar_keys(of_topic text, wanted text, max_keys integer DEFAULT 5)
RETURNS TABLE (topic text, key text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT n.topic, n.key FROM (
    SELECT DISTINCT ON (n.topic, n.key) n.* FROM inturn.topic t
    CROSS JOIN (SELECT count(*) <= 20 AS few FROM inturn.topic) n_topics
    CROSS JOIN LATERAL (
        -- LIMIT 1: a probe each, whatever the planner thinks.
        SELECT CASE WHEN t.name = coalesce(of_topic, t.name) THEN 0 ELSE 1 END AS rank, c.topic, c.key
        FROM inturn._spellings_of(wanted) s (key) CROSS JOIN LATERAL (
            SELECT c.topic, c.key FROM inturn.key_sequence c
            WHERE c.topic = t.name AND c.key = s.key COLLATE "C" LIMIT 1) c
        UNION ALL
        SELECT 2, c.topic, c.key
        FROM inturn._further_spellings_of(wanted) s (key) CROSS JOIN LATERAL (
            SELECT c.topic, c.key FROM inturn.key_sequence c
            WHERE c.topic = t.name AND c.key = s.key COLLATE "C" LIMIT 1) c
        WHERE t.name = of_topic OR of_topic IS NULL AND few
        UNION ALL
        (SELECT 3, c.topic, c.key FROM inturn.key_sequence c
         WHERE c.topic = t.name AND c.key > wanted COLLATE "C" ORDER BY c.key LIMIT max_keys)
        UNION ALL
        (SELECT 3, c.topic, c.key FROM inturn.key_sequence c
         WHERE c.topic = t.name AND c.key < wanted COLLATE "C" ORDER BY c.key DESC LIMIT 2)
    ) n
    WHERE t.name <> ALL ((SELECT inturn._hidden_topics())::text[]) AND (
        n.rank < 3 OR wanted <> '' AND n.topic = coalesce(of_topic, n.topic)
                      AND starts_with(n.key, left(wanted, greatest(length(wanted) * 2 / 3, 1))))
    ORDER BY n.topic, n.key, n.rank
) n
WHERE (n.topic, n.key) IS DISTINCT FROM (of_topic, wanted)
ORDER BY n.rank, abs(length(n.key) - length(wanted)), n.key, n.topic LIMIT max_keys
$$;
COMMENT ON FUNCTION inturn._similar_keys IS 'Internal to why: existing keys for a mistyped one.';
