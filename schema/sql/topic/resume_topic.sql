CREATE FUNCTION inturn.resume_topic(topic text, reason text DEFAULT NULL) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Resumes the keys of a paused topic where they stood; returns the recorded action.
--
-- Locks: the topic's row. Raises IT041 when it is not paused, and what _lock_topic raises.
DECLARE
    was constant inturn.topic := inturn._lock_topic(topic);
    settings inturn.topic;
BEGIN
    IF (was.paused_at IS NOT NULL AND clock_timestamp() < coalesce(was.paused_until, 'infinity')) IS NOT TRUE THEN
        PERFORM inturn._refuse_action(topic, '', 'is not paused', 'There is nothing to resume.');
    END IF;
    UPDATE inturn.topic t SET paused_at = NULL, paused_until = NULL WHERE t.name = resume_topic.topic
    RETURNING * INTO settings;
    PERFORM inturn._notify_appliers(topic);
    RETURN inturn._record_action(topic, '', NULL, 'resume', reason, to_jsonb(was), to_jsonb(settings));
END
$$;
COMMENT ON FUNCTION inturn.resume_topic IS 'Resumes the keys of a paused topic where they stood.';
