-- Makes a key ready now, with all its attempts before it, and records who wanted it. Internal to retry and retry_all.
--
-- was: the key, whose ticket the caller has locked.
CREATE FUNCTION inturn._retry_key(was inturn.key_cursor, reason text) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    cursor inturn.key_cursor := was;
BEGIN
    cursor.held_at := NULL; cursor.attempts := 0; cursor.waiting_at := NULL;
    cursor.ready_at := inturn._next_ready_at(cursor, clock_timestamp());
    PERFORM inturn._save_key(was, cursor);
    RETURN inturn._record_action(was.topic, was.key, was.applied_seq + 1, 'retry', reason,
                                inturn._key_facts(was), inturn._key_facts(cursor));
END
$$;
COMMENT ON FUNCTION inturn._retry_key IS 'Internal to retry and retry_all: makes a key ready now and records it.';
