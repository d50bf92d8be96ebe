-- Says whether a topic is left out because _target_refusal refuses it, and warns of it. Internal to apply and the
-- claims by lease. Takes no locks.
--
-- left_out: the topics of which this call has warned before.
CREATE FUNCTION inturn._leave_out(settings inturn.topic, left_out text[]) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    refusal constant text := (inturn._target_refusal(settings)).says;
BEGIN
    IF refusal IS NOT NULL AND settings.name <> ALL (left_out) THEN
        RAISE WARNING USING ERRCODE = 'IT013', MESSAGE = refusal,
            HINT = format('Its keys stay as they are until that is set again: SELECT inturn.why(%L, KEY).',
                          settings.name);
    END IF;
    RETURN refusal IS NOT NULL;
END
$$;
COMMENT ON FUNCTION inturn._leave_out IS 'Internal to the appliers: whether a topic is left out because it is refused.';
