-- Keeps what announce_applier says. Internal to it.
--
-- backend_start: when this session began, which it may see of itself; the owner of the schema may not.
-- Locks: the applier's row; rows of forgotten ones, skipping locked ones.
CREATE FUNCTION inturn._announce_applier(
    applier text, topics text[], host text, pid integer, revision text, pooled boolean, down jsonb, abandoned integer,
    backend_start timestamptz
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO inturn.applier AS a (applier, topics, host, pid, backend_pid, backend_start, revision, pooled,
                                     down, abandoned)
    SELECT _announce_applier.applier, coalesce(_announce_applier.topics, '{}'), _announce_applier.host,
           _announce_applier.pid,
           pg_backend_pid(), coalesce(_announce_applier.backend_start, clock_timestamp()), _announce_applier.revision,
           _announce_applier.pooled,
           -- Lengths of time, so that no other clock than the database's matters.
           coalesce((SELECT jsonb_object_agg(d.key, d.value - 'seconds' || jsonb_build_object(
                        'since', clock_timestamp()
                            - make_interval(secs => greatest(least((d.value ->> 'seconds')::numeric, 1e9), 0)::float8)))
                     FROM jsonb_each(coalesce(_announce_applier.down, '{}')) d), '{}'),
           coalesce(_announce_applier.abandoned, 0)
    ON CONFLICT (applier) DO UPDATE SET
        topics = EXCLUDED.topics, host = EXCLUDED.host, pid = EXCLUDED.pid, backend_pid = EXCLUDED.backend_pid,
        backend_start = EXCLUDED.backend_start, revision = EXCLUDED.revision, pooled = EXCLUDED.pooled,
        seen_at = EXCLUDED.seen_at, down = EXCLUDED.down, abandoned = EXCLUDED.abandoned, ended = false,
        -- The same name a while later, in a container that was started again, is another applier.
        started_at = CASE WHEN a.backend_start = EXCLUDED.backend_start
                               OR a.seen_at > EXCLUDED.seen_at - interval '15 seconds'
                          THEN a.started_at ELSE EXCLUDED.started_at END;
    DELETE FROM inturn.applier a WHERE a.applier IN (
        SELECT old.applier FROM inturn.applier old
        WHERE old.seen_at < clock_timestamp() - interval '1 day' FOR UPDATE SKIP LOCKED);
END
$$;
COMMENT ON FUNCTION inturn._announce_applier IS 'Internal to announce_applier: keeps what it says.';
