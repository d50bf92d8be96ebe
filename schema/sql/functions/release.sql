-- Ends a lease after the last recorded command: the key goes idle, or to the back of the queue.
--
-- Locks, in this order: the row in key_cursor; the row in key_sequence, if no caller holds it. Raises what hold_lease raises.
CREATE FUNCTION inturn.release(topic text, key text, epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
BEGIN
    PERFORM inturn.hold_lease(topic, key, epoch);
    UPDATE inturn.key_cursor c SET claimed_by = NULL, claimed_at = NULL, lease_until = NULL
    WHERE c.topic = release.topic AND c.key = release.key;
    PERFORM inturn.settle_key(topic, key);
END
$$;
COMMENT ON FUNCTION inturn.release IS 'Ends a lease after the last recorded command.';
