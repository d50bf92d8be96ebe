-- Deletes the turns before where _find_cuts says, as _cut_commands does, and returns how many. Internal to
-- _cut_history.
CREATE FUNCTION inturn._cut_turns(topic text, cuts inturn._cut[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    place record; deleted bigint; turns bigint := 0;
BEGIN
    FOR place IN
        SELECT u.of, array_agg(u.tid) AS tids FROM unnest(cuts) c CROSS JOIN LATERAL (
            SELECT u.tableoid AS of, u.ctid AS tid FROM inturn.turn u
            WHERE u.topic = _cut_turns.topic AND u.key = c.key AND u.epoch >= c.from_epoch
              AND u.epoch < c.epoch OFFSET 0) u
        GROUP BY u.of
    LOOP
        DELETE FROM inturn.turn d WHERE d.tableoid = place.of AND d.ctid = ANY (place.tids);
        GET DIAGNOSTICS deleted = ROW_COUNT; turns := turns + deleted;
    END LOOP;
    RETURN turns;
END
$$;
COMMENT ON FUNCTION inturn._cut_turns IS 'Internal to _cut_history: deletes turns.';
