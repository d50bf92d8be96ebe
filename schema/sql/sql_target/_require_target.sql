-- Returns a topic, and refuses one whose target belongs to somebody else than when it was set. Internal to the
-- appliers, who ask before they claim a key of it: so no command is charged with that.
--
-- A target that is missing, or cannot be called, is not refused here: it fails the commands. Takes no locks. Raises
-- IT013.
CREATE FUNCTION inturn._require_target(settings inturn.topic) RETURNS inturn.topic
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM inturn._trusted_target(settings);
    RETURN settings;
EXCEPTION WHEN SQLSTATE 'IT012' THEN
    RETURN settings;
END
$$;
COMMENT ON FUNCTION inturn._require_target IS 'Internal to the appliers: refuses a topic whose target belongs to somebody else than when it was set.';
