-- Returns the keys on which something has arrived that has no number yet, each as a JSON array of topic and key, in
-- text, in an object: so that one can be looked up. Internal to list_keys. Takes no locks.
--
-- of_topic: NULL for all.
CREATE FUNCTION inturn._arrived_keys(of_topic text) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
SELECT coalesce(jsonb_object_agg(jsonb_build_array(i.topic, i.key)::text, 0), '{}')
FROM unnest(inturn._arrival_topics(ARRAY(
    SELECT t.name FROM inturn.topic t WHERE of_topic IS NULL OR t.name = of_topic))) t (name)
CROSS JOIN LATERAL (SELECT i.topic, i.key FROM inturn.arrived_key i WHERE i.topic = t.name OFFSET 0) i
$$;
COMMENT ON FUNCTION inturn._arrived_keys IS
    'Internal to list_keys: the keys on which something has arrived that has no number yet.';
