CREATE FUNCTION inturn.release(topic text, key text, epoch bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
-- Ends a lease after the last recorded command: the key goes idle, or to the back of the queue.
--
-- Locks, in this order: the key's ticket; its row in key_sequence, if no caller holds it. Raises what _hold_lease raises.
DECLARE
    was constant inturn.key_cursor := inturn._hold_lease(topic, key, epoch);
    cursor inturn.key_cursor := was;
BEGIN
    cursor.claimed_by := NULL; cursor.claimed_at := NULL; cursor.lease_until := NULL;
    PERFORM inturn._settle_key(was, cursor);
END
$$;
COMMENT ON FUNCTION inturn.release IS 'Ends a lease after the last recorded command.';
