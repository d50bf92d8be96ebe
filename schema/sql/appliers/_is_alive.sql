-- Returns whether an applier is alive, from its entry and its session in pg_stat_activity. Internal. Takes no locks.
--
-- backend, state, query_start: of its session; backend NULL: it is not there. The other two are NULL to those who may
-- not see them.
-- In a session of the database the statement that applies is the one it was announced in; what runs later is something
-- else.
CREATE FUNCTION inturn._is_alive(p inturn.applier, backend integer, state text, query_start timestamptz) RETURNS boolean
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT CASE
    WHEN p.pooled THEN p.seen_at > clock_timestamp() - interval '15 seconds'
    WHEN backend IS NULL THEN false
    WHEN p.pid IS NULL THEN coalesce(state = 'active' AND query_start <= p.seen_at,
                                     p.seen_at > clock_timestamp() - interval '15 seconds')
    ELSE state IS DISTINCT FROM 'idle' OR p.seen_at > clock_timestamp() - interval '15 seconds' END
$$;
COMMENT ON FUNCTION inturn._is_alive IS 'Internal: whether an applier is alive.';
