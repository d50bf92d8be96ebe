-- Plans the merges of a key that was claimed alone, and returns true; false when its commands could not be merged: that
-- has been recorded, and the lease has ended. Internal to the turns that are taken alone.
--
-- was: the key, as _hold_lease returned it. Locks and raises what _end_alone does.
CREATE FUNCTION inturn._plan_alone(settings inturn.topic, was inturn.key_cursor, max_commands integer) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    problem text;
BEGIN
    IF settings.merges THEN
        problem := inturn._plan_merges(settings, was.key, was.applied_seq, was.epoch,
                                      CASE WHEN was.attempts > 0 OR was.lost > 0 THEN 1 ELSE max_commands END);
    END IF;
    IF problem IS NOT NULL THEN
        PERFORM inturn._end_alone(was.topic, was.key, was.epoch, was.applied_seq, problem, 'merge', took => '0');
        RETURN false;
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION inturn._plan_alone IS 'Internal: plans the merges of a key that was claimed alone.';
