-- Locks a key for an operator, and returns its row in key_cursor. Internal to the operators' functions.
--
-- Waits for the applier that is at work on the key, for at most lock_timeout (set it: the default is for ever).
-- Raises IT001, IT040 no such key, IT042 when the wait was too long, with who holds it; IT031 outside READ COMMITTED.
CREATE FUNCTION inturn.lock_cursor(topic text, key text) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    cursor inturn.key_cursor;
BEGIN
    PERFORM inturn.require_read_committed();
    BEGIN
        SELECT * INTO cursor FROM inturn.key_cursor c
        WHERE c.topic = lock_cursor.topic AND c.key = lock_cursor.key FOR UPDATE;
    EXCEPTION WHEN lock_not_available THEN
        RAISE EXCEPTION USING ERRCODE = 'IT042',
            MESSAGE = format('key %L of topic %L is in other hands: %s', key, topic, coalesce((
                SELECT inturn.describe_backend(inturn.row_holder(c.xmax, 'inturn.key_cursor')) FROM inturn.key_cursor c
                WHERE c.topic = lock_cursor.topic AND c.key = lock_cursor.key), 'nobody any more')),
            HINT = format('Nothing was changed. Waited for %s; try again, or end that session: SELECT pg_terminate_backend(PID).',
                          current_setting('lock_timeout'));
    END;
    IF cursor.key IS NULL THEN
        IF NOT EXISTS (SELECT FROM inturn.topic t WHERE t.name = lock_cursor.topic) THEN
            PERFORM inturn.refuse_topic(topic);
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'IT040',
            MESSAGE = format('topic %L has no key %s', topic, coalesce(quote_literal(left(key, 600)), 'NULL')),
            HINT = 'A key is known from its first committed command on. Keys are compared byte by byte.';
    END IF;
    RETURN cursor;
END
$$;
COMMENT ON FUNCTION inturn.lock_cursor IS 'Internal to the operators'' functions: locks a key and returns its cursor.';
