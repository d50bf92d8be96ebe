-- Returns the sessions that have claimed a key in the transaction that they are in, each with the first of its keys
-- among those that have been ready the longest in the appliers' topics; NULL: none is. Internal to list_appliers. Takes
-- no locks.
--
-- What turns left in the index before the last pass of an applier is not walked over, nor leases that were given back:
-- see _walk_from.
CREATE FUNCTION inturn._find_turns()
RETURNS TABLE (backend_pid integer, topic text, key text, applied_seq bigint)
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
-- A transaction that has claimed a key has a number, and a lock of this mode on the table.
WITH claim AS MATERIALIZED (
    SELECT DISTINCT ON (x.pid) x.pid, x.transactionid AS xid FROM pg_locks x JOIN pg_locks r ON r.pid = x.pid
    WHERE x.locktype = 'transactionid' AND x.granted
      AND r.relation = 'inturn.ticket'::regclass AND r.mode = 'RowShareLock'
    ORDER BY x.pid, age(x.transactionid) DESC
),
oldest AS MATERIALIZED (
    SELECT c.* FROM (SELECT DISTINCT t.name FROM inturn.applier p JOIN claim ON claim.pid = p.backend_pid
                     CROSS JOIN unnest(p.topics) t (name)) t
    LEFT JOIN inturn._walk_from() w ON w.topic = t.name
    CROSS JOIN LATERAL (
        SELECT c.topic, c.key, c.applied_seq, c.xmax AS locker FROM inturn.ticket c
        WHERE c.topic COLLATE "POSIX" = t.name AND c.ready_at >= coalesce(w.since, '-infinity')
          AND c.ready_at <= (SELECT clock_timestamp()) ORDER BY c.ready_at LIMIT 200) c
)
SELECT claim.pid, o.topic, o.key, o.applied_seq
FROM claim LEFT JOIN LATERAL (SELECT o.* FROM oldest o WHERE o.locker = claim.xid LIMIT 1) o ON true
$$;
COMMENT ON FUNCTION inturn._find_turns IS
    'Internal to list_appliers: the sessions that have claimed a key, and the key.';
