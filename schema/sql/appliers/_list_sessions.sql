-- Lists the sessions of appliers of a host that have not said their end and are there. Internal to appliers: whether
-- their processes are there too, only the host can tell. Takes no locks.
--
-- seen_at: when the applier announced itself last, on that session. seconds: for how long the session has been there.
-- One whose beginning the owner of the schema may not see is left out: another may have its number.
CREATE FUNCTION inturn._list_sessions(host text)
RETURNS TABLE (
    applier text, topics text[], pid integer, backend_pid integer, backend_start timestamptz, seen_at timestamptz,
    seconds double precision
)
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
SELECT a.applier, a.topics, a.pid, a.backend_pid, a.backend_start, a.seen_at,
       extract(epoch FROM clock_timestamp() - a.backend_start)::double precision
FROM inturn.applier a JOIN pg_stat_activity s ON s.pid = a.backend_pid AND s.backend_start = a.backend_start
WHERE a.host = _list_sessions.host AND a.pid IS NOT NULL AND NOT a.pooled AND NOT a.ended
  AND s.datname = current_database()
$$;
COMMENT ON FUNCTION inturn._list_sessions IS 'Internal to appliers: the sessions of those of a host.';
