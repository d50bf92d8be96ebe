-- Returns why the target of a topic is not called although it is there, see _require_target; NULL: it is. Internal to
-- apply and why.
-- Takes no locks.
--
-- Only looks up what the role that asks may look into: to others a function that they cannot see is missing.
CREATE FUNCTION inturn._target_refusal(settings inturn.topic) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF settings.target LIKE 'sql:%' THEN
        PERFORM inturn._require_target(settings);
    END IF;
    RETURN NULL;
EXCEPTION WHEN SQLSTATE 'IT013' THEN
    RETURN SQLERRM;
END
$$;
COMMENT ON FUNCTION inturn._target_refusal IS 'Internal to apply and why: why the target of a topic is not called.';
