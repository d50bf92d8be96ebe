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
DECLARE
    holder text;
    backend integer; -- the holder's; NULL: it is not a session, or cannot be seen
BEGIN
    PERFORM FROM inturn.key_sequence s
    WHERE s.topic = _lock_callers.topic AND s.key >= _lock_callers.key AND s.key <= _lock_callers.key
    ORDER BY s.key DESC LIMIT 1 FOR UPDATE;
EXCEPTION WHEN lock_not_available THEN
    SELECT inturn._describe_locker(s.xmax, 'inturn.key_sequence'), inturn._lock_holder(s.xmax, 'inturn.key_sequence')
    INTO holder, backend FROM inturn.key_sequence s
    WHERE s.topic = _lock_callers.topic AND s.key = _lock_callers.key;
    RAISE EXCEPTION USING ERRCODE = 'IT042',
        MESSAGE = format('key %L of topic %L is being appended to: %s', key, topic,
                         coalesce(holder, 'by nobody any more')),
        HINT = format('Nothing was changed. Waited for %s; try again%s.', current_setting('lock_timeout'),
                      CASE WHEN backend IS NOT NULL
                               THEN format(', or end that session: SELECT pg_terminate_backend(%s)', backend)
                           WHEN holder IS NOT NULL THEN ', or end it: COMMIT PREPARED, ROLLBACK PREPARED'
                           ELSE '' END);
END
$$;
COMMENT ON FUNCTION inturn._lock_callers IS 'Internal to the operators'' functions: keeps the callers of a key out.';
