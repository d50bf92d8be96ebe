-- Records the progress of many leases in one transaction; returns what became of each. Internal to the applier for
-- outside work.
--
-- The arrays run in parallel, an element a lease. seq: the command that took effect; NULL: none, the lease is renewed.
-- release: end the lease then. outcome: kept; let go, the lease has ended; fenced, it is another's and nothing was
-- changed.
-- seconds: how long a kept lease runs from now.
-- Locks the keys' tickets in byte order, so that two appliers that differ on who has a lease do not deadlock; what
-- release locks. Raises IT032 when a seq is not the next; IT014 when a topic is granted to other appliers only.
CREATE FUNCTION inturn._record_progress(topics text[], keys text[], epochs bigint[], seqs bigint[], releases boolean[])
RETURNS TABLE (place bigint, outcome text, seconds double precision)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    step record;
    until timestamptz;
BEGIN
    FOR step IN
        SELECT t.* FROM unnest(topics, keys, epochs, seqs,
                               releases) WITH ORDINALITY t (topic, key, epoch, seq, release, place)
        ORDER BY t.topic COLLATE "C", t.key COLLATE "C", t.place
    LOOP
        place := step.place;
        outcome := 'kept';
        seconds := NULL;
        -- What is not leased is not locked: that would count as a claim of it.
        PERFORM FROM inturn.ticket t
        WHERE t.topic = step.topic AND t.key = step.key AND t.epoch = step.epoch AND t.marked AND EXISTS (
            SELECT FROM inturn.key_mark m
            WHERE m.topic = step.topic AND m.key = step.key AND m.epoch = step.epoch AND m.claimed_by IS NOT NULL)
        FOR UPDATE;
        -- Asked, not caught: each exception caught would be a subtransaction.
        IF NOT FOUND OR NOT EXISTS (
            SELECT FROM inturn.key_mark m
            WHERE m.topic = step.topic AND m.key = step.key AND m.epoch = step.epoch AND m.claimed_by IS NOT NULL) THEN
            -- As where it is leased: what another applier has is not told to those who may not have it.
            PERFORM inturn._require_grant(step.topic, 'applier');
            outcome := 'fenced';
        ELSE
            IF step.seq IS NOT NULL THEN
                until := inturn.advance(step.topic, step.key, step.epoch, step.seq);
            ELSIF NOT step.release THEN
                until := inturn.renew(step.topic, step.key, step.epoch);
            ELSE
                until := clock_timestamp();
            END IF;
            IF until IS NOT NULL AND step.release THEN
                PERFORM inturn.release(step.topic, step.key, step.epoch);
                until := NULL;
            END IF;
            IF until IS NULL THEN
                outcome := 'let go';
            ELSE
                seconds := extract(epoch FROM until - clock_timestamp());
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn._record_progress IS
    'Internal to the applier for outside work: records the progress of many leases.';
