-- Lets a key whose cursor was moved go idle, be ready, or stay paused; returns its row. Internal to release, the claims by
-- lease and the operators' functions.
--
-- A lease that runs goes on: the key does not go idle under it, and is ready when it is over. After an empty turn the key
-- is ready a little later, as finish has it.
-- The caller holds the key's row in key_cursor. Locks its row in key_sequence, skipping it if a caller holds it: then
-- the key is ready, and an applier's turn will find out.
CREATE FUNCTION inturn.settle_key(topic text, key text) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    cursor inturn.key_cursor;
    drained boolean;
BEGIN
    PERFORM FROM inturn.key_sequence s WHERE s.topic = settle_key.topic AND s.key = settle_key.key FOR UPDATE SKIP LOCKED;
    drained := FOUND;
    -- A statement of its own, whose snapshot is newer than the lock: see finish.
    SELECT drained AND (c.lease_until > clock_timestamp()) IS NOT TRUE AND NOT EXISTS (
        SELECT FROM inturn.command_log l
        WHERE l.topic = settle_key.topic AND l.key = settle_key.key AND l.seq = c.applied_seq + 1) INTO drained
    FROM inturn.key_cursor c WHERE c.topic = settle_key.topic AND c.key = settle_key.key;
    UPDATE inturn.key_cursor c SET
        ready_at = CASE WHEN drained THEN NULL
                        WHEN c.paused_at IS NULL OR c.paused_until IS NOT NULL THEN greatest(
                            clock_timestamp() + CASE WHEN c.empty_turns > 0
                                THEN least(power(2, least(c.empty_turns - 1, 10)), 100) ELSE 0 END * interval '1 ms',
                            c.paused_until, c.lease_until) END
    WHERE c.topic = settle_key.topic AND c.key = settle_key.key RETURNING * INTO cursor;
    IF drained THEN
        UPDATE inturn.key_sequence s SET drained_seq = cursor.applied_seq
        WHERE s.topic = settle_key.topic AND s.key = settle_key.key;
        PERFORM inturn.find_gap(t.name, settle_key.key) FROM inturn.topic t
        WHERE t.name = settle_key.topic AND t.numbering = 'given';
        SELECT * INTO cursor FROM inturn.key_cursor c WHERE c.topic = settle_key.topic AND c.key = settle_key.key;
    ELSIF cursor.empty_turns = 0 THEN
        PERFORM inturn.notify_appliers(topic);
    END IF;
    RETURN cursor;
END
$$;
COMMENT ON FUNCTION inturn.settle_key IS 'Internal: lets a key go idle, be ready, or stay paused.';
