-- Returns the state of a key now, as whoever looks at it is told. Internal. Takes no locks.
--
-- That is the one that is stored. Where only a hint tells of what was appended (see _leave_hint), it is what the next
-- applier will make of it: ready, where its next command is there; waiting, where only later ones are.
CREATE FUNCTION inturn._seen_state(c inturn.key_cursor) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    stored constant text := inturn._stored_state(c);
BEGIN
    IF NOT (stored IN ('idle', 'waiting') OR stored = 'held' AND c.waiting_at IS NOT NULL)
        OR NOT EXISTS (SELECT FROM inturn.command_log l
                       WHERE l.topic = c.topic AND l.key = c.key AND l.seq > c.applied_seq)
        OR NOT EXISTS (SELECT FROM inturn.wake_hint h WHERE h.topic = c.topic AND h.key = c.key)
    THEN
        RETURN stored;
    END IF;
    RETURN CASE WHEN EXISTS (SELECT FROM inturn.command_log l
                             WHERE l.topic = c.topic AND l.key = c.key AND l.seq = c.applied_seq + 1) THEN 'ready'
                WHEN stored = 'held' THEN stored ELSE 'waiting' END;
END
$$;
COMMENT ON FUNCTION inturn._seen_state IS 'Internal: the state of a key now, as whoever looks at it is told.';
