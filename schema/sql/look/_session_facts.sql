-- Returns sessions as JSON, the one first whose transaction began first. Internal. Takes no locks.
CREATE FUNCTION inturn._session_facts(backends integer[]) RETURNS jsonb
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
    'backend', a.pid, 'kind', inturn._session_kind(a.pid), 'applier', p.applier, 'host',
    coalesce(p.host, host(a.client_addr)),
    'pid', p.pid, 'application', nullif(a.application_name, ''), 'user', a.usename, 'since', a.xact_start,
    'state', a.state,
    'query', left(a.query, 1000), 'waits_for', inturn._session_waits_for(a.pid),
    'blocked_by', nullif(pg_blocking_pids(a.pid), '{}'), 'says', inturn._describe_backend(a.pid)))
    ORDER BY a.xact_start, a.pid), '[]')
FROM pg_stat_activity a
LEFT JOIN inturn.applier p ON p.backend_pid = a.pid AND coalesce(a.backend_start, p.backend_start) = p.backend_start
WHERE a.pid = ANY (backends)
$$;
COMMENT ON FUNCTION inturn._session_facts IS 'Internal: sessions as JSON, the longest transaction first.';
