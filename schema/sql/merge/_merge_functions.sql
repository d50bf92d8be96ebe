-- Returns the merge rules of a topic that call a function, with who owned it when each was set. Internal to
-- _require_merges and _trusted_merge. Takes no locks.
CREATE FUNCTION inturn._merge_functions(topic text)
RETURNS TABLE (first_name text, then_name text, becomes text, owner text, owner_id text)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
SELECT r.first_name, r.then_name, r.becomes, r.function_owner, r.function_owner_id FROM inturn.merge_rule r
WHERE r.topic = _merge_functions.topic AND inturn._function_name(r.becomes) IS NOT NULL
ORDER BY r.first_name, r.then_name
$$;
COMMENT ON FUNCTION inturn._merge_functions IS 'Internal: the merge rules of a topic that call a function.';
