-- Makes a key ready now, with all its attempts before it, and records who wanted it. Internal to retry and retry_all.
--
-- was: the key's row in key_cursor, which the caller has locked.
CREATE FUNCTION inturn.retry_key(was inturn.key_cursor, reason text) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    moved inturn.key_cursor;
BEGIN
    UPDATE inturn.key_cursor c SET held_at = NULL, ready_at = clock_timestamp(), attempts = 0, waiting_at = NULL
    WHERE c.topic = was.topic AND c.key = was.key RETURNING * INTO moved;
    RETURN inturn.record_action(was.topic, was.key, was.applied_seq + 1, 'retry', reason,
                                inturn.key_facts(was), inturn.key_facts(moved));
END
$$;
COMMENT ON FUNCTION inturn.retry_key IS 'Internal to retry and retry_all: makes a key ready now and records it.';
