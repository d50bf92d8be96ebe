-- Moves a key's cursor past the commands that an operator passes over, and settles the key; returns its row. Internal.
--
-- The caller holds the key's row in key_cursor. Locks what settle_key locks.
CREATE FUNCTION inturn.move_past(topic text, key text, seq bigint) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
BEGIN
    UPDATE inturn.key_cursor c SET
        applied_seq = move_past.seq, epoch = c.epoch + 1, attempts = 0, empty_turns = 0,
        last_error = NULL, failed_at = NULL, held_at = NULL, waiting_at = NULL,
        claimed_by = NULL, claimed_at = NULL, lease_until = NULL
    WHERE c.topic = move_past.topic AND c.key = move_past.key;
    RETURN inturn.settle_key(topic, key);
END
$$;
COMMENT ON FUNCTION inturn.move_past IS 'Internal to skip and cancel_rest: moves a key''s cursor past what is passed over.';
