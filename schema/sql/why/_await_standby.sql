-- Returns the command that helps where one of some sessions waits for a synchronous standby; NULL: none does.
-- Internal to why. Takes no locks.
--
-- sessions: from _session_facts. What such a session did is committed here: it would stay so if it were ended, whatever
-- becomes of the standby.
CREATE FUNCTION inturn._await_standby(sessions jsonb) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT 'psql "$INTURN_DSN" -c "SELECT application_name, state, sync_state FROM pg_stat_replication"'
       '  # it goes on once a standby of synchronous_standby_names answers'
WHERE EXISTS (SELECT FROM jsonb_array_elements(sessions) s (one)
              JOIN pg_stat_activity a ON a.pid = (s.one->>'backend')::integer WHERE a.wait_event = 'SyncRep')
$$;
COMMENT ON FUNCTION inturn._await_standby IS
    'Internal to why: what helps where a session waits for a synchronous standby.';
