-- Returns the backends that may have locked a row; exactly one where xmax identifies it. Internal. Takes no locks.
--
-- locker: the row's xmax. One backend, where xmax identifies it (see _lock_holder); otherwise every other backend whose
-- open transaction has changed something and has a row lock's mode on the table. Appliers are not among those: they
-- lock at the top level. Empty: none can be seen, as when a prepared transaction has the lock.
CREATE FUNCTION inturn._lock_holders(locker xid, relation regclass) RETURNS integer[]
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT coalesce(
    (SELECT ARRAY[h.pid] FROM inturn._lock_holder(locker, relation) h (pid) WHERE h.pid IS NOT NULL),
    (SELECT array_agg(DISTINCT x.pid) FROM pg_locks x JOIN pg_locks r ON r.pid = x.pid
     WHERE x.locktype = 'transactionid' AND x.granted AND x.pid <> pg_backend_pid()
       AND r.relation = _lock_holders.relation AND r.mode IN ('RowShareLock', 'RowExclusiveLock') AND r.granted
       AND r.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
       AND inturn._session_kind(x.pid) <> 'applier'),
    '{}')
$$;
COMMENT ON FUNCTION inturn._lock_holders IS 'Internal: the backends that may have locked a row.';
