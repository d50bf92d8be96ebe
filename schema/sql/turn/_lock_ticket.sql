-- Locks the ticket of a key once more, as a claim does; returns whether it is there and ready, and was free. Internal
-- to the appliers.
--
-- Nobody claims by it what is held, paused or leased.
-- Raises IT014 when the topic is granted to other appliers only: what has locked a ticket counts as its claim.
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
    FOR UPDATE SKIP LOCKED;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION inturn._lock_ticket IS 'Internal to the appliers: locks the ticket of a key once more.';
