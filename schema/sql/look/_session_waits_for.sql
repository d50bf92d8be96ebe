-- Says what a session that is in a transaction waits for, NULL when it computes. Internal. Takes no locks.
CREATE FUNCTION inturn._session_waits_for(backend integer) RETURNS text
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT CASE
    WHEN a.state LIKE 'idle in transaction%' THEN 'its own code, outside the database'
    WHEN a.wait_event_type = 'Lock' THEN 'a lock held by ' || coalesce((
        SELECT string_agg(CASE b.pid WHEN 0 THEN 'a prepared transaction'
                               ELSE inturn._describe_backend(b.pid) END, '; ')
        FROM unnest(pg_blocking_pids(a.pid)) b (pid)), 'somebody')
    WHEN a.wait_event = 'SyncRep' THEN 'a synchronous standby to confirm its COMMIT'
    WHEN a.state = 'active' THEN a.wait_event_type || ' ' || a.wait_event END
FROM pg_stat_activity a WHERE a.pid = backend
$$;
COMMENT ON FUNCTION inturn._session_waits_for IS 'Internal: says what a session waits for.';
