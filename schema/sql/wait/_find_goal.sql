-- Returns up to which number a wait goes that names none; NULL while nobody can know. Internal to wait_state. Takes no
-- locks.
--
-- With an idempotency key it is the number of the command that has it, once that has one; without, that of the last
-- command committed on the key. Where numbers are given on arrival that may have none yet: mark is the newest
-- transaction up to which anything is left of what had arrived when the wait began (0: nothing had), and as soon as
-- nothing is, it is the last number there is then. What a transaction up to mark commits later counts too.
-- Raises IT040 when nothing was ever committed on the key.
CREATE FUNCTION inturn._find_goal(topic text, key text, idempotency_key text, INOUT mark bigint, OUT goal bigint)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
AS $$
DECLARE
    newest xid8;
BEGIN
    IF idempotency_key IS NOT NULL THEN
        SELECT l.seq INTO goal FROM inturn.command_log l
        WHERE l.topic = _find_goal.topic AND l.key = _find_goal.key AND l.idempotency_key = _find_goal.idempotency_key;
        RETURN;
    END IF;
    IF mark IS DISTINCT FROM 0 THEN
        newest := inturn._newest_arrival(topic, key, mark::text::xid8);
        mark := coalesce(newest::text::bigint, mark, 0);
        IF newest IS NOT NULL THEN
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
