-- Describes in a few words whose session a backend is, since when its transaction is open, and what it does. Internal.
-- Takes no locks.
CREATE FUNCTION inturn._describe_backend(backend integer) RETURNS text
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT concat_ws(', ',
    coalesce('applier ' || p.applier, nullif(a.application_name, ''), 'a session') || ' (backend ' || a.pid
        || coalesce(' of ' || a.usename, '') || coalesce(' from ' || host(a.client_addr), '') || ')',
    'in a transaction since ' || to_char(a.xact_start AT TIME ZONE 'UTC', 'HH24:MI:SS "UTC"'),
    CASE WHEN a.state = 'idle in transaction' THEN 'doing nothing in it'
         WHEN a.wait_event = 'SyncRep' THEN 'waiting for a synchronous standby'
         WHEN a.state = 'active' THEN 'at work' END)
FROM pg_stat_activity a
LEFT JOIN inturn.applier p ON p.backend_pid = a.pid AND p.backend_start = a.backend_start
WHERE a.pid = backend
$$;
COMMENT ON FUNCTION inturn._describe_backend IS 'Internal: says whose session a backend is and what it does.';
