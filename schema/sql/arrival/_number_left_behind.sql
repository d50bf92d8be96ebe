-- Numbers what was left behind in a topic, key by key, where the key is free; returns how many commands. Internal to
-- _number_topic.
--
-- A key's commands are taken in the order of their ids, whichever pass left them behind.
-- Locks the keys' rows in key_sequence, skipping locked ones. Raises what _append_batch does.
CREATE FUNCTION inturn._number_left_behind(topic text, max_commands integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET enable_hashagg = off
AS $$
DECLARE
    one text;
    tids tid[];
    numbered bigint := 0;
    problem text;
BEGIN
    FOREACH one IN ARRAY inturn._lock_arrived_keys(topic, ARRAY(
        SELECT DISTINCT i.key FROM inturn.intake i
        WHERE i.topic = _number_left_behind.topic AND i.left_because IS NOT NULL ORDER BY i.key))
    LOOP
        tids := ARRAY(SELECT i.ctid FROM inturn.intake i
                      WHERE i.topic = _number_left_behind.topic AND i.key = one AND i.left_because IS NOT NULL
                      ORDER BY i.id LIMIT max_commands);
        SELECT numbered + t.moved, t.problem INTO numbered, problem FROM inturn._try_append(topic, tids) t;
        -- Once: it is tried again and again.
        UPDATE inturn.intake i SET left_because = problem
        WHERE i.ctid = ANY (tids) AND i.left_because IS DISTINCT FROM problem;
    END LOOP;
    RETURN numbered;
END
$$;
COMMENT ON FUNCTION inturn._number_left_behind IS 'Internal to the appliers: numbers what was left behind, key by key.';
