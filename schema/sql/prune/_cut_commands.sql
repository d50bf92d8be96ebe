-- Deletes the commands before where _find_cuts says, and returns how many. Internal to _cut_history.
--
-- Rows are looked up key by key, and named by their place: joined to an array, a plan made while the tables were small
-- walks over the whole topic. A place is one of a partition, where whoever installed has made some: two commands may
-- have the same, and one of them be pending.
-- kept_before: a command that has an idempotency key and is younger stays. The caller holds the keys' rows in
-- key_sequence, and has set what keeps the planner to the indexes. Locks nothing that anybody else locks.
CREATE FUNCTION inturn._cut_commands(topic text, cuts inturn._cut[], kept_before timestamptz) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    place record;
    deleted bigint;
    commands bigint := 0;
BEGIN
    FOR place IN
        SELECT l.of, array_agg(l.tid) AS tids FROM unnest(cuts) c CROSS JOIN LATERAL (
            (SELECT l.tableoid AS of, l.ctid AS tid FROM inturn.command_log l
             WHERE l.topic = _cut_commands.topic AND l.key = c.key AND l.seq >= c.from_seq AND l.seq < c.seq
               AND (l.idempotency_key IS NULL OR l.created_at < kept_before) OFFSET 0)
            UNION ALL
            (SELECT l.tableoid, l.ctid FROM inturn.command_log l
             WHERE l.topic = _cut_commands.topic AND l.key = c.key AND l.seq >= c.kept_from AND l.seq <= c.kept_to
             OFFSET 0)) l
        GROUP BY l.of
    LOOP
        DELETE FROM inturn.command_log d WHERE d.tableoid = place.of AND d.ctid = ANY (place.tids);
        GET DIAGNOSTICS deleted = ROW_COUNT;
        commands := commands + deleted;
    END LOOP;
    RETURN commands;
END
$$;
COMMENT ON FUNCTION inturn._cut_commands IS 'Internal to _cut_history: deletes commands.';
