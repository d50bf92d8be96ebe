-- Makes an idle key ready, and notifies if an applier of its topic may be asleep. Internal to append.
-- A paused key is ready when its pause ends; one that is paused for good stands still until an operator resumes it.
--
-- The caller holds the key's row in key_sequence, and the key is drained: no applier holds the row in
-- key_cursor that is locked here, so no caller waits for a handler.
CREATE FUNCTION inturn.wake_key(topic text, key text) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    asleep boolean;
BEGIN
    INSERT INTO inturn.key_cursor AS c (topic, key, ready_at)
    VALUES (wake_key.topic, wake_key.key, clock_timestamp())
    ON CONFLICT ON CONSTRAINT key_cursor_pkey DO UPDATE SET
        ready_at = CASE WHEN c.paused_at IS NULL OR c.paused_until IS NOT NULL
                        THEN greatest(EXCLUDED.ready_at, c.paused_until) END
    RETURNING EXISTS (SELECT FROM inturn.listener l
                      WHERE l.topic = wake_key.topic AND l.asleep_until > clock_timestamp()) INTO asleep;
    IF asleep THEN
        PERFORM pg_notify('inturn.ready', wake_key.topic);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn.wake_key IS 'Internal to append: makes an idle key ready and wakes a sleeping applier.';
