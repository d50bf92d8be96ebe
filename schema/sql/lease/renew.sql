CREATE FUNCTION inturn.renew(topic text, key text, epoch bigint, lease interval DEFAULT NULL) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
-- Renews a lease while a command is at work; returns until when it runs now.
--
-- lease: its length from now; NULL for the topic's own. Locks the key's ticket. Raises what _hold_lease and
-- _lease_end raise.
DECLARE
    was constant inturn.key_cursor := inturn._hold_lease(topic, key, epoch);
    cursor inturn.key_cursor := was;
BEGIN
    SELECT inturn._lease_end(t, renew.lease) INTO cursor.lease_until FROM inturn.topic t WHERE t.name = renew.topic;
    -- A pause ends the lease with the command in hand, not before.
    cursor.ready_at := inturn._next_ready_at(cursor, cursor.lease_until);
    PERFORM inturn._save_key(was, cursor);
    RETURN cursor.lease_until;
END
$$;
COMMENT ON FUNCTION inturn.renew IS 'Renews a lease while a command is at work.';
