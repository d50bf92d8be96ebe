CREATE FUNCTION inturn.pause_topic(topic text, reason text DEFAULT NULL, until timestamptz DEFAULT NULL)
RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Pauses all keys of a topic until a time, or until it is resumed; returns the recorded action.
--
-- Turns in hand end as usual, and no other begins. Appends go on; nothing is lost. If it is paused already, the new
-- until replaces the old one.
-- Locks: the topic's row.
-- Raises IT041 when it is paused until the same time, or until is past or after the year 9999; and what _lock_topic
-- raises.
DECLARE
    was constant inturn.topic := inturn._lock_topic(topic);
    paused constant boolean := was.paused_at IS NOT NULL AND clock_timestamp() < coalesce(was.paused_until, 'infinity');
    settings inturn.topic;
BEGIN
    until := nullif(until, 'infinity'); -- no end is NULL, everywhere
    PERFORM inturn._refuse_until(topic, '', until);
    IF paused AND was.paused_until IS NOT DISTINCT FROM until THEN
        PERFORM inturn._refuse_action(topic, '', 'is paused already', 'Resume it, or give another time.');
    END IF;
    UPDATE inturn.topic t SET
        paused_at = CASE WHEN paused THEN t.paused_at ELSE clock_timestamp() END, paused_until = until
    WHERE t.name = pause_topic.topic RETURNING * INTO settings;
    RETURN inturn._record_action(topic, '', NULL, 'pause', reason, to_jsonb(was), to_jsonb(settings));
END
$$;
COMMENT ON FUNCTION inturn.pause_topic IS 'Pauses all keys of a topic until a time, or until it is resumed.';
