-- Ends a key's wait for a missing number, and the hold that came of waiting too long. Internal.
--
-- The caller holds the key's row in key_sequence, and the key is drained. Locks its row in key_cursor.
CREATE FUNCTION inturn.end_gap(topic text, key text) RETURNS void
LANGUAGE sql VOLATILE
SET enable_seqscan = off
AS $$
UPDATE inturn.key_cursor c SET waiting_at = NULL, held_at = NULL, attempts = 0, last_error = NULL, failed_at = NULL
WHERE c.topic = end_gap.topic AND c.key = end_gap.key AND c.waiting_at IS NOT NULL
$$;
COMMENT ON FUNCTION inturn.end_gap IS 'Internal: ends a key''s wait for a missing number.';
