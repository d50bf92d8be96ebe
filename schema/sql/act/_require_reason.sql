-- Refuses an operator's change of history without a reason, or with one of only white space. Internal. Takes no locks.
-- Raises IT043.
CREATE FUNCTION inturn._require_reason(action text, reason text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF inturn._is_blank(reason) THEN
        RAISE EXCEPTION USING ERRCODE = 'IT043',
            MESSAGE = format('%s changes what takes effect, and was given no reason', action),
            HINT = 'Give the reason: it stays in operator_action for those who ask later.';
    END IF;
END
$$;
COMMENT ON FUNCTION inturn._require_reason IS
    'Internal to the operators'' functions: refuses a change without a reason.';
