-- Keeps the callers of a key out until the end of the transaction, for an operator. Internal.
--
-- Waits for the callers whose transactions are open on the key, for at most lock_timeout. Locks its row in
-- key_sequence.
-- Raises IT042 when the wait was too long, with who holds it.
CREATE FUNCTION inturn._lock_callers(topic text, key text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
BEGIN
    PERFORM FROM inturn.key_sequence s
    WHERE s.topic = _lock_callers.topic AND s.key >= _lock_callers.key AND s.key <= _lock_callers.key
    ORDER BY s.key DESC LIMIT 1 FOR UPDATE;
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION USING ERRCODE = 'IT042',
        MESSAGE = format('key %L of topic %L is being appended to: %s', key, topic, coalesce((
            SELECT inturn._describe_locker(s.xmax, 'inturn.key_sequence') FROM inturn.key_sequence s
            WHERE s.topic = _lock_callers.topic AND s.key = _lock_callers.key), 'by nobody any more')),
        HINT = format('Nothing was changed. Waited for %s; try again, or end that session, SELECT '
                      'pg_terminate_backend(PID), or prepared transaction.',
                      current_setting('lock_timeout'));
END
$$;
COMMENT ON FUNCTION inturn._lock_callers IS 'Internal to the operators'' functions: keeps the callers of a key out.';
