-- Returns whose a session is: an applier's; an operator's, that has acted in its open transaction; a caller's, that has
-- appended in it; or another session's. NULL when it is gone. Internal. Takes no locks.
CREATE FUNCTION inturn._session_kind(backend integer) RETURNS text
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT CASE
    WHEN a.application_name = 'inturn apply' OR EXISTS (
        SELECT FROM inturn.applier p
        WHERE p.backend_pid = a.pid AND coalesce(a.backend_start, p.backend_start) = p.backend_start
          AND inturn._is_alive(p, a.pid, a.state, a.query_start)) THEN 'applier'
    WHEN 'inturn.operator_action'::regclass = ANY (w.written) THEN 'operator'
    WHEN 'inturn.command_log'::regclass = ANY (w.written) THEN 'caller'
    ELSE 'session' END
FROM pg_stat_activity a CROSS JOIN LATERAL (
    SELECT array_agg(l.relation::regclass) AS written FROM pg_locks l
    WHERE l.pid = a.pid AND l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted) w
WHERE a.pid = backend
$$;
COMMENT ON FUNCTION inturn._session_kind IS
    'Internal: whose a session is: an applier''s, an operator''s, a caller''s, or another.';
