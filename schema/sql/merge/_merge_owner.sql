-- Returns who owned the function of a merge rule when it was set. Internal to _call_merge. Takes no locks.
CREATE FUNCTION inturn._merge_owner(topic text, first text, "then" text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
SELECT r.function_owner FROM inturn.merge_rule r
WHERE r.topic = _merge_owner.topic AND r.first_name = first AND r.then_name = "then"
$$;
COMMENT ON FUNCTION inturn._merge_owner IS 'Internal: who owned the function of a merge rule when it was set.';
