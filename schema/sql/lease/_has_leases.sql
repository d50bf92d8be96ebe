-- Returns whether the process of an applier has keys by leases that run. Internal to the claims by lease. Takes no
-- locks.
--
-- lost_only: of those keys alone that were lost (see _lose_lease) and begun within the last second: what ends a process
-- mostly does so at once, and a command that takes long keeps no other key from being taken. Each question has an index
-- of its own, which the held keys of a topic are not in; what leases left there that would be over is not walked over.
CREATE FUNCTION inturn._has_leases(applier text, lost_only boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    now constant timestamptz := clock_timestamp(); -- a volatile function cannot bound an index scan
BEGIN
    IF lost_only THEN
        RETURN EXISTS (SELECT FROM inturn.key_mark m
                       WHERE m.lost > 0 AND m.claimed_by IS NOT NULL AND m.lease_until > now
                         AND m.claimed_at > now - interval '1 second'
                         AND inturn._process_of(m.claimed_by) = inturn._process_of(applier));
    END IF;
    RETURN EXISTS (SELECT FROM inturn.topic t CROSS JOIN LATERAL (
        SELECT FROM inturn.key_mark m WHERE m.topic = t.name AND m.lease_until > now
          AND inturn._process_of(m.claimed_by) = inturn._process_of(applier) ORDER BY m.lease_until LIMIT 1) m);
END
$$;
COMMENT ON FUNCTION inturn._has_leases IS
    'Internal to the claims by lease: whether an applier''s process has keys by leases that run.';
