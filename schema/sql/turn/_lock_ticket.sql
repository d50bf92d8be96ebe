-- Locks the ticket of a key once more, whose handler has ended the transaction of the claim; returns whether it is
-- there and ready as it was. Internal to the appliers.
--
-- Nobody claims by it what is held, paused or leased. It waits for whoever was quicker to claim the key: that handler
-- ends its transaction too, as a rule, and of several workers each would find the key with another one, and record
-- nothing.
-- Raises 55P03 where that takes longer than the transaction's lock_timeout; IT014 when the topic is granted to other
-- appliers only: what has locked a ticket counts as its claim.
CREATE FUNCTION inturn._lock_ticket(topic text, key text, epoch bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
BEGIN
    IF EXISTS (SELECT FROM inturn.topic_grant g WHERE g.topic = _lock_ticket.topic AND g.role = 'applier') THEN
        PERFORM inturn._require_grant(topic, 'applier');
    END IF;
    PERFORM FROM inturn.ticket t
    WHERE t.topic = _lock_ticket.topic AND t.key = _lock_ticket.key AND t.epoch = _lock_ticket.epoch
      AND t.ready_at <= clock_timestamp()
    FOR UPDATE;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION inturn._lock_ticket IS 'Internal to the appliers: locks the ticket of a key once more.';
