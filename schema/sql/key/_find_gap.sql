-- Returns a key as it is when nothing can be applied on it now: waiting, if it has later numbers and the next one is
-- missing; held, if it has waited for that too long; otherwise as it was, and not waiting. Internal. Takes no locks.
--
-- A key with a gap_timeout becomes ready when that is over, so that an applier's empty turn comes here again.
-- The caller holds the key's row in key_sequence, or nothing can be appended for another reason, and saves what is
-- returned.
CREATE FUNCTION inturn._find_gap(was inturn.key_cursor) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    cursor inturn.key_cursor := was;
    until timestamptz;
    paused constant boolean := inturn._stored_state(was) = 'paused';
BEGIN
    -- Only the looks count what is there: a key may wait before thousands.
    IF NOT EXISTS (SELECT FROM inturn.topic t WHERE t.name = was.topic AND t.numbering = 'given')
        OR EXISTS (SELECT FROM inturn.command_log l
                   WHERE l.topic = was.topic AND l.key = was.key AND l.seq = was.applied_seq + 1)
        OR NOT EXISTS (SELECT FROM inturn.command_log l
                       WHERE l.topic = was.topic AND l.key = was.key AND l.seq > was.applied_seq)
    THEN
        IF was.waiting_at IS NOT NULL AND was.held_at IS NOT NULL THEN
            cursor.held_at := NULL; cursor.attempts := 0; cursor.last_error := NULL; cursor.failed_at := NULL;
        END IF;
        cursor.waiting_at := NULL;
        RETURN cursor;
    ELSIF was.held_at IS NOT NULL THEN
        RETURN cursor;
    END IF;
    cursor.waiting_at := coalesce(was.waiting_at, clock_timestamp());
    IF NOT paused THEN
        cursor.paused_at := NULL; cursor.paused_until := NULL;
    END IF;
    SELECT cursor.waiting_at + t.gap_timeout INTO until FROM inturn.topic t WHERE t.name = was.topic;
    IF until <= clock_timestamp() AND NOT paused THEN
        cursor.held_at := clock_timestamp();
        cursor.failed_at := cursor.held_at;
        cursor.last_error := format('command %s was not appended within the topic''s gap_timeout', was.applied_seq + 1);
        until := NULL;
    END IF;
    cursor.ready_at := inturn._next_ready_at(cursor, until);
    RETURN cursor;
END
$$;
COMMENT ON FUNCTION inturn._find_gap IS
    'Internal: a key with nothing to apply, as waiting or held when a number is missing.';
