-- Returns the topics over which a prune of all goes, in their order. Internal to prune. Takes no locks.
--
-- Those with a retain; with older_than all but those that are granted to other operators only. Those come first whose
-- last pass began the longest ago, so that prunes that their max_seconds end leave none out for ever; also where a
-- clock was set back, and a pass seems to begin in the future. How far a pass came not everybody may see: see grants.
CREATE FUNCTION inturn._topics_to_prune(older_than interval) RETURNS text[]
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
SELECT ARRAY(
    SELECT t.name FROM inturn.topic t LEFT JOIN LATERAL (
        SELECT p.began_at FROM inturn.prune_pass p WHERE p.topic = t.name ORDER BY p.pass DESC LIMIT 1) p ON true
    WHERE CASE WHEN older_than IS NULL THEN t.retain IS NOT NULL
               ELSE t.name <> ALL ((SELECT inturn._hidden_topics())::text[]) END
    ORDER BY CASE WHEN p.began_at <= clock_timestamp() THEN p.began_at END NULLS FIRST, t.name)
$$;
COMMENT ON FUNCTION inturn._topics_to_prune IS 'Internal to prune: the topics over which it goes, in their order.';
