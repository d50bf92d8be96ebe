-- Claims one ready key by a short lease, for a turn in a transaction of its own; no row: none is ready. Internal to the
-- appliers.
--
-- Appliers take suspects this way, and any key while they are careful: after a death (see _careful_keys),
-- after a connection that was lost with several keys in hand, and after a failure with an unknown cause. Once this is
-- committed, the next claim finds out what became of the process (see _lose_lease). The turn locks the ticket, so that
-- it may last longer than the lease.
-- since: as in claim. epoch is NULL when there was nothing to do on the key after all; so is key where none can be
-- claimed now: ask again in a moment.
-- A process begins no other key beside one that was lost, nor that beside others: what ends the process then was alone.
-- But nothing waits for that without end: the others only for a second (see _has_leases); the lost one for a minute, as
-- a process that works outside the database too may always have something in hand.
-- Locks, in this order: what claim, _lock_process and _try_lease lock, and raises what they raise. Waits for those of
-- the process that have begun a key, or a lost one, and commit at once.
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
    SELECT * INTO claimed FROM inturn.claim(topic, since, 1) c;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- Not tried for: where many claim, somebody always has it.
    PERFORM inturn._lock_process(applier, shared => NOT claimed.lost);
    -- Whoever has claimed before has committed by now.
    IF inturn._has_leases(applier, NOT claimed.lost) AND (NOT claimed.lost OR (
        SELECT coalesce(m.lease_until, m.failed_at, '-infinity') > clock_timestamp() - interval '1 minute'
        FROM inturn.key_mark m
        WHERE m.topic = _claim_alone.topic AND m.key = claimed.key AND m.epoch = claimed.epoch - 1) IS NOT false) THEN
        IF claimed.lost THEN
            UPDATE inturn.ticket t SET ready_at = clock_timestamp() + interval '50 ms'
            WHERE t.topic = _claim_alone.topic AND t.key = claimed.key AND t.epoch = claimed.epoch - 1;
            key := claimed.key;
        END IF;
        ready_at := claimed.ready_at;
        RETURN NEXT;
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
