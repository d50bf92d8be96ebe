-- Refuses to pause a key, or with key '' a topic, until a time that is past, or that no calendar of a client can show.
-- Internal to pause and pause_topic. Takes no locks. Raises IT041.
CREATE FUNCTION inturn._refuse_until(topic text, key text, until timestamptz) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF until <= clock_timestamp() THEN
        PERFORM inturn._refuse_action(topic, key, format('cannot be paused until %s, which is past', until),
                                      'Give a later time.');
    ELSIF until >= '9999-12-31' THEN
        PERFORM inturn._refuse_action(topic, key, format('cannot be paused until %s, which is after the year 9999',
                                                         until),
            'Give an earlier time, or none: it is paused until somebody resumes it.');
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._refuse_until IS
    'Internal to pause and pause_topic: refuses a time that is past, or beyond all calendars.';
