-- Explains why nobody serves a topic: the schema does not fit its appliers, or there is none. Internal to why. Takes no
-- locks.
--
-- An applier is known by what it announces of itself, never guessed from a session that has announced nothing: sessions
-- of an applier that serves other topics, or that do its work outside the database, look the same.
-- A crash empties the list of appliers: an applier that it lacks may still be on its way back.
CREATE FUNCTION inturn._explain_unserved(t inturn.topic)
RETURNS TABLE (cause text, says text, to_do text, details jsonb)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    revision constant text := (SELECT v.version_num FROM inturn.schema_version v);
    started_at constant timestamptz := inturn._server_started_at();
    since_start constant text := to_char(started_at AT TIME ZONE 'UTC',
        '"none has announced itself since the server started at" YYYY-MM-DD HH24:MI:SS "UTC"');
    last record;
BEGIN
    SELECT * INTO last FROM inturn.list_appliers() a WHERE t.name = ANY (a.topics) ORDER BY a.seen_at DESC LIMIT 1;
    IF NOT inturn._fits(last.revision) THEN
        RETURN QUERY SELECT 'schema_mismatch',
            format('Its applier %s on %s serves schema revision %s, and the database is at %s; it was last seen at %s',
                   last.applier, last.host, last.revision, revision,
                   to_char(last.seen_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"')),
            CASE WHEN last.revision < revision
                     THEN 'pip install --upgrade inturn  # there; then start inturn apply again'
                 ELSE 'inturn upgrade' END,
            jsonb_build_object('revision', revision, 'applier_revision', last.revision, 'applier', last.applier,
                               'host', last.host,
                               'seen_at', last.seen_at);
        RETURN;
    END IF;
    RETURN QUERY SELECT 'no_applier',
        format('It is ready, and no applier serves its topic (target %s): %s', t.target, CASE
            WHEN last.applier IS NOT NULL THEN
                format('the last one, %s on %s, was seen at %s', last.applier, last.host,
                       to_char(last.seen_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS "UTC"'))
                || CASE WHEN last.seen_at < started_at THEN '; ' || since_start ELSE '' END
            WHEN started_at > clock_timestamp() - interval '1 day' THEN since_start
            ELSE 'none was seen in the last day' END),
        (SELECT k.to_run FROM inturn._kind_of(t.target) k),
        jsonb_build_object('target', t.target, 'last_applier', last.applier, 'host', last.host, 'seen_at', last.seen_at,
                           'server_started_at', started_at);
END
$$;
COMMENT ON FUNCTION inturn._explain_unserved IS 'Internal to why: explains why nobody serves a topic.';
