CREATE FUNCTION inturn.announce_applier(
    applier text, topics text[], host text, pid integer, revision text, pooled boolean DEFAULT false,
    down jsonb DEFAULT '{}', abandoned integer DEFAULT 0
) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
-- Says that an applier serves these topics, and that it was seen now. An applier says so when it starts and every few seconds.
--
-- host, pid: its process; pid NULL: a session of the database, which says it inside the statement that applies.
-- revision: of the schema that it serves. pooled: its sessions of the database may change from one transaction to the next.
-- down: the topics whose breaker is open in its process, each with seconds (since when), key (the last one tried) and error.
-- abandoned: how many threads its process has left behind.
-- Its end needs no word: see list_appliers. Forgets appliers that were not seen for a day.
-- Locks: the applier's row; rows of forgotten ones, skipping locked ones.
#variable_conflict use_column
BEGIN
    INSERT INTO inturn.applier AS a (applier, topics, host, pid, backend_pid, backend_start, revision, pooled,
                                     down, abandoned)
    SELECT announce_applier.applier, coalesce(announce_applier.topics, '{}'), announce_applier.host, announce_applier.pid,
           s.pid, coalesce(s.backend_start, clock_timestamp()), announce_applier.revision, announce_applier.pooled,
           -- Lengths, so that no clock but this one matters.
           coalesce((SELECT jsonb_object_agg(d.key, d.value - 'seconds' || jsonb_build_object(
                        'since', clock_timestamp() - make_interval(secs => (d.value ->> 'seconds')::float8)))
                     FROM jsonb_each(announce_applier.down) d), '{}'),
           coalesce(announce_applier.abandoned, 0)
    FROM pg_stat_get_activity(pg_backend_pid()) s
    ON CONFLICT (applier) DO UPDATE SET
        topics = EXCLUDED.topics, host = EXCLUDED.host, pid = EXCLUDED.pid, backend_pid = EXCLUDED.backend_pid,
        backend_start = EXCLUDED.backend_start, revision = EXCLUDED.revision, pooled = EXCLUDED.pooled,
        seen_at = EXCLUDED.seen_at, down = EXCLUDED.down, abandoned = EXCLUDED.abandoned,
        -- The same name a while later, in a container that was started again, is another applier.
        started_at = CASE WHEN a.backend_start = EXCLUDED.backend_start OR a.seen_at > EXCLUDED.seen_at - interval '15 seconds'
                          THEN a.started_at ELSE EXCLUDED.started_at END;
    DELETE FROM inturn.applier a WHERE a.applier IN (
        SELECT old.applier FROM inturn.applier old
        WHERE old.seen_at < clock_timestamp() - interval '1 day' FOR UPDATE SKIP LOCKED);
END
$$;
COMMENT ON FUNCTION inturn.announce_applier IS 'Says that an applier serves these topics, and that it was seen now.';
