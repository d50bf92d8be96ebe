CREATE FUNCTION inturn._done_seq(target text, batch inturn.command[], last_seq bigint, answer bigint) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- Returns up to which number a key is done, from the answer of a SQL target for batches: how many of its commands took
-- effect, counted from the first. Internal to _batch_query.
--
-- last_seq: up to where the batch is all there is to do; where it has no commands, there was no answer to wait for.
-- Takes no locks. Raises IT012 when the answer is not from 1 to as many as there were: with 0 the key would never move
-- on.
DECLARE
    commands constant integer := cardinality(batch);
BEGIN
    IF commands > 0 AND (answer BETWEEN 1 AND commands) IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'IT012',
            MESSAGE = format('%s returned %s for %s commands', target, coalesce(answer::text, 'NULL'), commands),
            HINT = 'It returns how many of them took effect, from 1 on; when the first one cannot, it raises.';
    END IF;
    RETURN CASE WHEN answer < commands THEN (batch[answer]).seq ELSE last_seq END;
END
$$;
COMMENT ON FUNCTION inturn._done_seq IS 'Internal: up to which number a SQL target for batches says a key is done.';
