-- Locks a key for the holder of its lease, and returns where it stands. Internal to advance, renew, release and fail.
--
-- The epoch alone decides: over or not, a lease counts until another claim takes the next epoch. Locks the key's
-- ticket.
-- Raises IT030 when the lease is gone; IT031 outside READ COMMITTED; IT014 when the topic is granted to other appliers
-- only:
-- an epoch can be guessed.
CREATE FUNCTION inturn._hold_lease(topic text, key text, epoch bigint) RETURNS inturn.key_cursor
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    held inturn.key_cursor;
BEGIN
    PERFORM inturn._require_read_committed();
    IF EXISTS (SELECT FROM inturn.topic_grant g WHERE g.topic = _hold_lease.topic AND g.role = 'applier') THEN
        PERFORM inturn._require_grant(topic, 'applier');
    END IF;
    -- The ticket is found by its epoch, so that what earlier leases left in the index is not walked over.
    PERFORM FROM inturn.ticket t
    WHERE t.topic = _hold_lease.topic AND t.key = _hold_lease.key AND t.epoch = _hold_lease.epoch FOR UPDATE;
    IF FOUND THEN
        SELECT * INTO held FROM inturn._find_cursor(_hold_lease.topic, _hold_lease.key) c
        WHERE c.claimed_by IS NOT NULL;
    END IF;
    IF held.key IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT030',
            MESSAGE = format('turn %s of key %L of topic %L was fenced off: its lease is gone', epoch, key, topic),
            HINT = 'Stop work on the key at once: another applier may have it.';
    END IF;
    RETURN held;
END
$$;
COMMENT ON FUNCTION inturn._hold_lease IS 'Internal: locks a key for the holder of its lease.';
