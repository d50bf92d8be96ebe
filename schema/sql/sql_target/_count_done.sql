CREATE FUNCTION inturn._count_done(target text, commands integer, answer bigint) RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
-- Returns what a SQL target for batches has answered: how many of its commands took effect, the first ones. Internal to
-- _batch_query.
--
-- Takes no locks. Raises IT012 when that is not from 1 to as many as there were: with 0 the key would never move on.
BEGIN
    IF (answer BETWEEN 1 AND commands) IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'IT012',
            MESSAGE = format('%s returned %s for %s commands', target, coalesce(answer::text, 'NULL'), commands),
            HINT = 'It returns how many of them took effect, from 1 on; when the first one cannot, it raises.';
    END IF;
    RETURN answer;
END
$$;
COMMENT ON FUNCTION inturn._count_done IS 'Internal: how many commands a SQL target for batches says took effect.';
