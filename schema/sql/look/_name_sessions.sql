-- Names the sessions that may be meant, in a text. Internal. Takes no locks.
--
-- sessions: from _session_facts. unseen: what is meant where there are none, from _describe_locker; NULL: nobody knows.
CREATE FUNCTION inturn._name_sessions(sessions jsonb, unseen text DEFAULT NULL) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT CASE jsonb_array_length(sessions)
    WHEN 0 THEN CASE WHEN unseen IS NOT NULL THEN unseen
                     WHEN EXISTS (SELECT FROM pg_prepared_xacts x WHERE x.database = current_database())
                     THEN 'a prepared transaction, it seems: see pg_prepared_xacts'
                     ELSE 'a session that cannot be seen' END
    WHEN 1 THEN (sessions->0->>'says')
        || coalesce('. Its last query: ' || inturn._shorten(sessions->0->>'query', 120), '')
    ELSE format('one of %s sessions: ', jsonb_array_length(sessions))
        || (SELECT string_agg(s.value->>'says', '; ' ORDER BY s.position) FROM jsonb_array_elements(sessions)
            WITH ORDINALITY s (value, position) WHERE s.position <= 3)
        || CASE WHEN jsonb_array_length(sessions) > 3 THEN '; ...' ELSE '' END END
$$;
COMMENT ON FUNCTION inturn._name_sessions IS 'Internal: says who the sessions are, of which one is meant.';
