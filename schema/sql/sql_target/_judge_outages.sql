-- Records the outages that a batch has met, and notes of which keys they were, as long as no command of their topic
-- answers. Internal to apply, which is its own breaker. Takes no locks that fail does not, and raises what that does.
--
-- outages: as apply_batch or _apply_alone return them. applier: NULL: they have been recorded as failed attempts.
-- answered: a command took effect, or failed for a reason of its own.
-- failing: of each topic, the keys in a row that have met one; from the fifth on its target is down: what fails then
-- counts as no attempt, and the call leaves the topic out, with a warning.
CREATE FUNCTION inturn._judge_outages(
    topic text, outages jsonb, answered boolean, applier text, INOUT failing jsonb
)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    outage record;
    keys jsonb := coalesce(failing -> topic, '[]');
    is_down boolean := jsonb_array_length(keys) >= 5;
BEGIN
    FOR outage IN
        SELECT * FROM jsonb_to_recordset(coalesce(outages, '[]'))
            o (key text, epoch bigint, from_seq bigint, failed_seq bigint, error text, took double precision)
    LOOP
        PERFORM inturn.fail(topic, outage.key, outage.epoch, outage.from_seq, outage.failed_seq, outage.error, applier,
                            CASE WHEN is_down THEN 'outage' END, took => make_interval(secs => outage.took))
        WHERE applier IS NOT NULL;
        keys := (keys - outage.key) || to_jsonb(outage.key);
        is_down := is_down OR jsonb_array_length(keys) >= 5;
    END LOOP;
    failing := CASE WHEN answered THEN failing - topic ELSE failing || jsonb_build_object(topic, keys) END;
    IF is_down AND NOT answered THEN
        RAISE WARNING USING
            MESSAGE = format('topic %L is left out: what its commands need does not answer, %s keys in a row failed',
                             topic, jsonb_array_length(keys)),
            HINT = 'Its keys stay as they are until apply is called again.';
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._judge_outages IS
    'Internal to apply: records the outages that a batch has met, and says whether the topic is down.';
