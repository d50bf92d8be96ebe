-- Returns the function that a topic's SQL target names, as it is when it is called. Internal to the appliers. Takes no
-- locks.
--
-- Raises what _target_function does; IT013 when it has another owner than when it was set.
CREATE FUNCTION inturn._trusted_target(settings inturn.topic) RETURNS regprocedure
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    resolved constant regprocedure := inturn._target_function(settings.name, settings.target);
BEGIN
    PERFORM inturn._require_owner(format('the target of topic %L', settings.name), resolved, settings.target_owner,
        settings.target_owner_id, format('SELECT inturn.set_topic(%L, target => %L).', settings.name, settings.target));
    RETURN resolved;
END
$$;
COMMENT ON FUNCTION inturn._trusted_target IS
    'Internal to the appliers: the function that a SQL target names, if it belongs to whom it did.';
