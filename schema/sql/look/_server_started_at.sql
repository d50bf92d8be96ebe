-- Returns since when the server runs without a crash. Internal. Takes no locks.
--
-- After a crash of one of its processes the server starts all of them anew, except the first, whose start is
-- pg_postmaster_start_time(). So it asks the checkpointer too, which only roles see that may see other users' sessions.
CREATE FUNCTION inturn._server_started_at() RETURNS timestamptz
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT greatest(pg_postmaster_start_time(), max(a.backend_start))
FROM pg_stat_activity a WHERE a.backend_type = 'checkpointer'
$$;
COMMENT ON FUNCTION inturn._server_started_at IS 'Internal: since when the server runs without a crash.';
