-- Lists the sessions of appliers of a host that have not said their end and are there. Internal to appliers: whether
-- their processes are there too, only the host can tell. Takes no locks.
CREATE FUNCTION inturn._list_sessions(host text)
RETURNS TABLE (applier text, topics text[], pid integer, backend_pid integer, backend_start timestamptz)
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
SELECT a.applier, a.topics, a.pid, a.backend_pid, a.backend_start FROM inturn.applier a
JOIN pg_stat_activity s ON s.pid = a.backend_pid AND coalesce(s.backend_start, a.backend_start) = a.backend_start
WHERE a.host = _list_sessions.host AND a.pid IS NOT NULL AND NOT a.pooled AND NOT a.ended
$$;
COMMENT ON FUNCTION inturn._list_sessions IS 'Internal to appliers: the sessions of those of a host.';
