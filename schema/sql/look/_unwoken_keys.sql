-- Returns the keys that list_keys lists otherwise than what is stored of them says: those on which something has
-- arrived that has no number yet, as arrived; those of which a hint tells more, see _hinted_keys. Each is a JSON array
-- of topic and key, in text, in an object, so that one can be looked up. Internal to list_keys. Takes no locks.
--
-- of_topic: NULL for all. states: in which they are stored.
CREATE FUNCTION inturn._unwoken_keys(of_topic text, states text[]) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
SELECT coalesce(jsonb_object_agg(jsonb_build_array(k.topic, k.key)::text, 0), '{}')
FROM (SELECT i.topic, i.key FROM unnest(inturn._arrival_topics(ARRAY(
          SELECT t.name FROM inturn.topic t
          WHERE 'idle' = ANY (states) AND (of_topic IS NULL OR t.name = of_topic)))) t (name)
      CROSS JOIN LATERAL (SELECT i.topic, i.key FROM inturn.arrived_key i WHERE i.topic = t.name OFFSET 0) i
      UNION ALL
      SELECT t.name, h.key FROM inturn.topic t CROSS JOIN LATERAL (
          SELECT w.topic FROM inturn.wake_hint w WHERE w.topic = t.name LIMIT 1) w -- mostly there is none
      CROSS JOIN LATERAL inturn._hinted_keys(w.topic, 50000) h
      WHERE states && '{idle,waiting,held}' AND (of_topic IS NULL OR t.name = of_topic)) k
$$;
COMMENT ON FUNCTION inturn._unwoken_keys IS
    'Internal to list_keys: the keys that are listed otherwise than what is stored of them says.';
