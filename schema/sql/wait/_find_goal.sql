-- Returns up to which number a wait goes that names none; NULL while nobody can know. Internal to wait_state. Takes no
-- locks.
--
-- With an idempotency key it is the number of the command that has it, once that has one; without, that of the last
-- command committed on the key. Where numbers are given on arrival that may have none yet: mark is the last one that
-- had arrived when the wait began (0: none had), and as soon as everything up to it has a number, it is the last number
-- there is then.
-- Raises IT040 when nothing was ever committed on the key.
CREATE FUNCTION inturn._find_goal(topic text, key text, idempotency_key text, INOUT mark bigint, OUT goal bigint)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    last constant inturn.arrival_pass := inturn._last_arrival_pass(topic);
    first_arrived bigint;
    last_arrived bigint;
BEGIN
    IF idempotency_key IS NOT NULL THEN
        SELECT l.seq INTO goal FROM inturn.command_log l
        WHERE l.topic = _find_goal.topic AND l.key = _find_goal.key AND l.idempotency_key = _find_goal.idempotency_key;
        RETURN;
    END IF;
    IF mark IS DISTINCT FROM 0 THEN
        -- Not the whole intake: see _number_topic.
        SELECT min(a.id), max(a.id) INTO first_arrived, last_arrived FROM (
            SELECT a.id FROM inturn._appeared(_find_goal.topic, last.seen, last.own) a WHERE a.key = _find_goal.key
            UNION ALL
            SELECT i.id FROM inturn.intake i
            WHERE i.topic = _find_goal.topic AND i.key = _find_goal.key AND i.left_because IS NOT NULL) a;
        mark := coalesce(mark, last_arrived, 0);
        IF first_arrived <= mark THEN
            RETURN;
        END IF;
    END IF;
    SELECT l.seq INTO goal FROM inturn.command_log l
    WHERE l.topic = _find_goal.topic AND l.key = _find_goal.key ORDER BY l.seq DESC LIMIT 1;
    IF goal IS NULL THEN
        -- What was applied may have been pruned.
        SELECT c.applied_seq INTO goal FROM inturn.key_cursor c
        WHERE c.topic = _find_goal.topic AND c.key = _find_goal.key;
    END IF;
    IF goal IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'IT040',
            MESSAGE = format('key %L of topic %L has no commands: nothing was ever committed on it', key, topic),
            HINT = 'Commit first, or say up to which seq to wait.';
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._find_goal IS 'Internal to wait_state: up to which number a wait goes that names none.';
