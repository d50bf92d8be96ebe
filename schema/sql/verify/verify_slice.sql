CREATE FUNCTION inturn.verify_slice(of_topic text, from_key text DEFAULT '', max_commands integer DEFAULT 50000)
RETURNS TABLE (to_key text, next_key text, keys bigint, commands bigint, turns bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET max_parallel_workers_per_gather = 0
AS $$
-- Returns the next keys of a topic to verify, from from_key on, and how much there is of them: a slice of about
-- max_commands commands, or one key that has more. Takes no locks.
--
-- to_key: the last of them; NULL: to the end. Ask for the next slice with next_key, until that is NULL:
-- no key lies between the two, so what was appended meanwhile, or is in one table only, is not left out.
-- Raises IT014 when the topic is granted to other operators only.
BEGIN
    PERFORM inturn._require_grant(of_topic, 'operator');
    SELECT l.key INTO to_key FROM inturn.command_log l
    WHERE l.topic = of_topic AND l.key >= from_key COLLATE "C"
    ORDER BY l.key, l.seq OFFSET greatest(max_commands, 1) - 1 LIMIT 1;
    -- The first that can follow, byte by byte.
    next_key := to_key || E'\x01';
    IF to_key IS NULL THEN
        SELECT count(*) INTO keys FROM inturn.key_sequence c WHERE c.topic = of_topic AND c.key >= from_key COLLATE "C";
        SELECT count(*) INTO commands FROM inturn.command_log l
        WHERE l.topic = of_topic AND l.key >= from_key COLLATE "C";
        SELECT count(*) INTO turns FROM inturn.turn t
        WHERE t.topic = of_topic AND t.key >= from_key COLLATE "C" AND t.outcome <> 'idle';
    ELSE
        SELECT count(*) INTO keys FROM inturn.key_sequence c
        WHERE c.topic = of_topic AND c.key >= from_key COLLATE "C" AND c.key <= to_key COLLATE "C";
        SELECT count(*) INTO commands FROM inturn.command_log l
        WHERE l.topic = of_topic AND l.key >= from_key COLLATE "C" AND l.key <= to_key COLLATE "C";
        SELECT count(*) INTO turns FROM inturn.turn t
        WHERE t.topic = of_topic AND t.key >= from_key COLLATE "C" AND t.key <= to_key COLLATE "C"
          AND t.outcome <> 'idle';
    END IF;
    RETURN NEXT;
END
$$;
COMMENT ON FUNCTION inturn.verify_slice IS 'The next keys of a topic to verify, and how much there is of them.';
