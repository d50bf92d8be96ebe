-- Returns the function that a topic's SQL target names, and refuses a topic of which that, or a function that merges
-- its commands, belongs to somebody else than when it was set. Internal to the appliers, who ask before they claim a
-- key of it, or in the transaction of the claim, which goes with the refusal: so no command is charged with that.
--
-- NULL: the target is not a SQL function; or it is missing, or cannot be called: that is not refused here, it fails the
-- commands. Takes no locks. Raises IT013.
CREATE FUNCTION inturn._require_target(settings inturn.topic) RETURNS regprocedure
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM inturn._require_merges(settings);
    RETURN CASE WHEN inturn._function_name(settings.target) IS NOT NULL THEN inturn._trusted_target(settings) END;
EXCEPTION WHEN SQLSTATE 'IT012' THEN
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION inturn._require_target IS
    'Internal to the appliers: refuses a topic of which a function belongs to somebody else than when it was set.';
