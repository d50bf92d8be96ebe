-- Keeps the process of an applier from beginning two keys at once that were lost (see _lose_lease). Internal to the
-- claims by lease, which ask _has_leases in a later statement: what it has begun before is committed then.
--
-- Locks, to the end of the transaction: an advisory lock of the process. Who holds it waits for no other lock.
CREATE FUNCTION inturn._lock_process(applier text) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT pg_advisory_xact_lock(hashtextextended('inturn process ' || inturn._process_of(applier), 0))
$$;
COMMENT ON FUNCTION inturn._lock_process IS 'Internal to the claims by lease: keeps a process from beginning two lost keys at once.';
