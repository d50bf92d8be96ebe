-- Returns the backend whose open transaction has locked a row, NULL when none has. Internal. Takes no locks.
--
-- locker: the row's xmax. A lock taken under a savepoint that was released is not found by it, nor one that several
-- share.
CREATE FUNCTION inturn._lock_holder(locker xid, relation regclass) RETURNS integer
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT x.pid FROM pg_locks x JOIN pg_locks r ON r.pid = x.pid
WHERE x.locktype = 'transactionid' AND x.transactionid = locker AND x.granted
  AND r.locktype = 'relation' AND r.relation = _lock_holder.relation AND r.granted
  AND r.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
LIMIT 1
$$;
COMMENT ON FUNCTION inturn._lock_holder IS 'Internal: the backend whose open transaction has locked a row.';
