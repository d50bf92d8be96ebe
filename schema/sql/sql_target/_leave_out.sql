-- Says whether apply leaves a topic out because its target is refused, and warns of it. Internal to apply. Takes no
-- locks.
--
-- left_out: the topics of which this call has warned before.
CREATE FUNCTION inturn._leave_out(topic text, left_out text[]) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    refusal constant text := inturn._target_refusal(inturn._sql_topic(topic));
BEGIN
    IF refusal IS NOT NULL AND topic <> ALL (left_out) THEN
        RAISE WARNING USING ERRCODE = 'IT013', MESSAGE = refusal,
            HINT = format('Its keys stay as they are until the target is set again: SELECT inturn.why(%L, KEY).', topic);
    END IF;
    RETURN refusal IS NOT NULL;
END
$$;
COMMENT ON FUNCTION inturn._leave_out IS 'Internal to apply: whether a topic is left out because its target is refused.';
