-- Claims one ready key by a short lease, for a turn in a transaction of its own; no row: none is ready, or none can be
-- claimed now.
-- Internal to the appliers.
--
-- Appliers take suspects this way, and any key while they are careful: after a death (see _careful_keys),
-- after a connection that was lost with several keys in hand, and after a failure with an unknown cause. Once this is
-- committed, the next claim finds out what became of the process (see _lose_lease). The turn locks the ticket, so that
-- it may last longer than the lease.
-- since: as in claim. epoch is NULL when there was nothing to do on the key after all.
-- Locks, in this order: what _lock_process, claim and _try_lease lock, and raises what they raise.
CREATE FUNCTION inturn._claim_alone(topic text, since timestamptz, applier text)
RETURNS TABLE (key text, epoch bigint, ready_at timestamptz)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    settings inturn.topic;
    claimed record;
    leased inturn.key_cursor;
BEGIN
    PERFORM inturn._lock_process(applier, shared => true);
    SELECT * INTO claimed FROM inturn.claim(topic, since, 1) c;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- A lost key and other keys are never in hand at the same time in one process. Whoever else claims at this moment
    -- has not committed yet.
    IF (CASE WHEN claimed.lost THEN NOT pg_try_advisory_xact_lock(inturn._process_lock(applier)) ELSE false END)
        OR inturn._has_leases(applier, NOT claimed.lost) THEN
        IF claimed.lost THEN
            UPDATE inturn.ticket t SET ready_at = clock_timestamp() + interval '50 ms'
            WHERE t.topic = _claim_alone.topic AND t.key = claimed.key AND t.epoch = claimed.epoch - 1;
            key := claimed.key; ready_at := claimed.ready_at;
            RETURN NEXT;
        END IF;
        RETURN;
    END IF;
    SELECT * INTO settings FROM inturn.topic t WHERE t.name = _claim_alone.topic;
    leased := inturn._try_lease(settings, claimed.key, claimed.applied_seq, claimed.epoch,
                                CASE WHEN claimed.lost THEN interval '10 s' ELSE interval '1 s' END, applier);
    key := claimed.key; epoch := leased.epoch; ready_at := claimed.ready_at;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION inturn._claim_alone IS 'Internal to the appliers: claims one ready key by a short lease.';
