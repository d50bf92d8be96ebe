-- Moves the commands of one key from the intake to the log as _append_arrived does; returns how many, or 0 and the
-- problem.
-- Internal to _append_batch and _number_left_behind.
--
-- Raises errors that no key is to blame for: see _append_batch.
CREATE FUNCTION inturn._try_append(topic text, tids tid[], OUT moved bigint, OUT problem text)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    moved := inturn._append_arrived(topic, tids);
EXCEPTION WHEN OTHERS THEN
    IF SQLSTATE IN ('53100', '55P03') THEN
        RAISE;
    END IF;
    moved := 0;
    problem := format('%s (SQLSTATE %s)', left(SQLERRM, 1000), SQLSTATE);
END
$$;
COMMENT ON FUNCTION inturn._try_append IS
    'Internal to the appliers: moves commands of one key from the intake to the log.';
