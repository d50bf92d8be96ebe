-- Renews a lease while a command is at work; returns until when it runs now.
--
-- lease: its length from now; NULL for the topic's own. Locks the row in key_cursor. Raises what hold_lease and
-- lease_end raise.
CREATE FUNCTION inturn.renew(topic text, key text, epoch bigint, lease interval DEFAULT NULL) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    until timestamptz;
BEGIN
    PERFORM inturn.hold_lease(topic, key, epoch);
    SELECT inturn.lease_end(t, renew.lease) INTO until FROM inturn.topic t WHERE t.name = renew.topic;
    -- A pause ends the lease with the command in hand, not before.
    UPDATE inturn.key_cursor c SET
        lease_until = until,
        ready_at = CASE WHEN c.paused_at IS NULL OR c.paused_until IS NOT NULL THEN greatest(until, c.paused_until) END
    WHERE c.topic = renew.topic AND c.key = renew.key;
    RETURN until;
END
$$;
COMMENT ON FUNCTION inturn.renew IS 'Renews a lease while a command is at work.';
