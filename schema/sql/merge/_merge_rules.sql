-- Returns the merge rules of a topic: from the pair of names, as a JSON array in text, to what it becomes. Internal.
-- Takes no locks.
CREATE FUNCTION inturn._merge_rules(topic text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
SELECT coalesce(jsonb_object_agg(jsonb_build_array(r.first_name, r.then_name)::text, r.becomes), '{}')
FROM inturn.merge_rule r WHERE r.topic = _merge_rules.topic
$$;
COMMENT ON FUNCTION inturn._merge_rules IS 'Internal: the merge rules of a topic.';
