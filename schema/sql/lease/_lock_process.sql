-- Keeps the process of an applier from having a key that was lost (see _lose_lease) in hand beside any other. Internal
-- to the claims by lease, which ask _has_leases in a later statement: what it has begun before is committed then.
--
-- shared: several claims of the process may hold the lock together, as long as none takes a lost key. One that has
-- found a lost key waits until they have committed.
-- Locks, to the end of the transaction: an advisory lock of the process. Its holder waits for no other lock.
CREATE FUNCTION inturn._lock_process(applier text, shared boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    process constant bigint := inturn._process_lock(applier);
BEGIN
    IF shared THEN
        PERFORM pg_advisory_xact_lock_shared(process);
    ELSE
        PERFORM pg_advisory_xact_lock(process);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._lock_process IS
    'Internal to the claims by lease: keeps a process from having a lost key in hand beside others.';
