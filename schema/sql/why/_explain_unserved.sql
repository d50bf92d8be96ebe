-- Explains why nobody serves a topic: the schema does not fit its appliers, or there is none. Internal to why. Takes no locks.
--
-- It is the schema when the applier that was seen last serves another revision, or when a session is called as an
-- applier's and has not announced itself: an older inturn. It may do so in its first two seconds.
CREATE FUNCTION inturn._explain_unserved(t inturn.topic)
RETURNS TABLE (cause text, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    revision constant text := (SELECT v.version_num FROM inturn.schema_version v);
    last record;
    old jsonb;
BEGIN
    SELECT * INTO last FROM inturn.list_appliers() a WHERE t.name = ANY (a.topics) ORDER BY a.seen_at DESC LIMIT 1;
    SELECT inturn._session_facts(array_agg(a.pid)) INTO old FROM pg_stat_activity a
    WHERE a.datname = current_database() AND a.application_name = 'inturn apply'
      AND a.query <> '<insufficient privilege>' AND a.query NOT LIKE 'LISTEN %'
      AND a.backend_start < clock_timestamp() - interval '2 seconds'
      AND NOT EXISTS (SELECT FROM inturn.applier p WHERE p.backend_pid = a.pid AND p.backend_start = a.backend_start);
    IF last.revision <> revision THEN
        RETURN QUERY SELECT 'schema_mismatch',
            format('Its applier %s on %s serves schema revision %s, and the database is at %s; it was last seen at %s',
                   last.applier, last.host, last.revision, revision, to_char(last.seen_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')),
            CASE WHEN last.revision < revision THEN 'pip install --upgrade inturn  # there; then start inturn apply again'
                 ELSE 'inturn upgrade' END,
            jsonb_build_object('revision', revision, 'applier_revision', last.revision, 'applier', last.applier, 'host', last.host,
                               'seen_at', last.seen_at);
    ELSIF old <> '[]' THEN
        RETURN QUERY SELECT 'schema_mismatch',
            format('Its applier seems to be of an older inturn, which does not fit schema revision %s: %s', revision, inturn._name_sessions(old)),
            'pip install --upgrade inturn  # there; then start inturn apply again',
            jsonb_build_object('revision', revision, 'sessions', old);
    ELSE
        RETURN QUERY SELECT 'no_applier',
            format('It is ready, and no applier serves its topic (target %s): %s', t.target, CASE
                       WHEN last.applier IS NULL THEN 'none was seen in the last day'
                       ELSE format('the last one, %s on %s, was seen at %s', last.applier, last.host,
                                   to_char(last.seen_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')) END),
            CASE WHEN t.target = 'python' THEN 'inturn apply --app MODULE:APPLIER --topic {topic}'
                 WHEN t.target LIKE 'sql:%' THEN E'inturn apply --topic {topic}\npsql "$INTURN_DSN" -c "CALL inturn.apply()"  # or in SQL, once'
                 ELSE 'inturn apply --topic {topic}' END,
            jsonb_build_object('target', t.target, 'last_applier', last.applier, 'host', last.host, 'seen_at', last.seen_at);
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._explain_unserved IS 'Internal to why: explains why nobody serves a topic.';
