-- Locks a key for the holder of its lease, and returns its row. Internal to advance, renew, release and fail.
--
-- The epoch alone decides: over or not, a lease counts until another claim takes the next epoch. Locks the row in key_cursor.
-- Raises IT030 when the lease is gone; IT031 outside READ COMMITTED.
CREATE FUNCTION inturn.hold_lease(topic text, key text, epoch bigint) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    held inturn.key_cursor;
BEGIN
    PERFORM inturn.require_read_committed();
    SELECT * INTO held FROM inturn.key_cursor c
    WHERE c.topic = hold_lease.topic AND c.key = hold_lease.key AND c.epoch = hold_lease.epoch AND c.claimed_by IS NOT NULL
    FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'IT030',
            MESSAGE = format('turn %s of key %L of topic %L was fenced off: its lease is gone', epoch, key, topic),
            HINT = 'Stop work on the key at once: another applier may have it.';
    END IF;
    RETURN held;
END
$$;
COMMENT ON FUNCTION inturn.hold_lease IS 'Internal: locks a key for the holder of its lease.';
