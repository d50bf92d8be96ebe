-- Returns who owns the function that a SQL target names, by name and by _role_id; NULL: the target is not one.
-- Internal to create_topic and set_topic, which record it. Takes no locks.
--
-- Raises what _target_function does.
CREATE FUNCTION inturn._target_owner(topic text, target text, OUT owner text, OUT owner_id text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT pg_get_userbyid(p.proowner)::text, inturn._role_id(p.proowner)
FROM pg_proc p
WHERE p.oid = CASE WHEN inturn._function_name(target) IS NOT NULL THEN inturn._target_function(topic, target)::oid END
$$;
COMMENT ON FUNCTION inturn._target_owner IS 'Internal: who owns the function that a SQL target names.';
