CREATE FUNCTION inturn.announce_applier(
    applier text, topics text[], host text, pid integer, revision text, pooled boolean DEFAULT false,
    down jsonb DEFAULT '{}', abandoned integer DEFAULT 0
) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
-- Says that an applier serves these topics, and that it was seen now. An applier says so when it starts and every few
-- seconds.
--
-- host, pid: its process; pid NULL: a session of the database, which says it inside the statement that applies.
-- revision: of the schema that it serves. pooled: its sessions of the database may change from one transaction to the
-- next.
-- down: the topics whose breaker is open in its process, each with seconds (since when), key (the last one tried) and
-- error.
-- abandoned: how many handlers its process has abandoned, because they did not return.
-- It need not announce its end: see list_appliers. Deletes appliers that were not seen for a day.
-- Locks: the applier's row; rows of forgotten ones, skipping locked ones. Raises 22004 and 22023 for what cannot be.
BEGIN
    IF num_nulls(applier, host, revision, pooled) > 0 THEN
        RAISE null_value_not_allowed USING MESSAGE = 'an applier has a name, a host, a revision, and is pooled or not',
            HINT = 'Give applier, host, revision and pooled; NULL stands for none of them.';
    ELSIF (CASE WHEN jsonb_typeof(down) = 'object' THEN EXISTS (
        SELECT FROM jsonb_each(down) d
        WHERE CASE WHEN jsonb_typeof(d.value) = 'object'
                       THEN jsonb_typeof(d.value -> 'seconds') = 'number' END IS NOT TRUE)
        ELSE down IS NOT NULL END) THEN
        RAISE invalid_parameter_value USING MESSAGE = format('down is %s', left(down::text, 200)),
            HINT = 'Give an object, for each topic an object with seconds, key and error.';
    END IF;
    -- A session sees this of itself; the owner of the schema may not see it of others.
    PERFORM inturn._announce_applier(applier, topics, host, pid, revision, pooled, down, abandoned, (
        SELECT s.backend_start FROM pg_stat_get_activity(pg_backend_pid()) s));
END
$$;
COMMENT ON FUNCTION inturn.announce_applier IS 'Says that an applier serves these topics, and that it was seen now.';
