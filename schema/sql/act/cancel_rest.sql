CREATE FUNCTION inturn.cancel_rest(topic text, key text, reason text) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
-- Skips every command that is pending on a key now, for good; returns the recorded action.
--
-- What is committed later is applied as usual. after says how many were skipped (cancelled).
-- Locks, in this order: the key's ticket (see _lock_cursor); its row in key_sequence, if no caller holds it.
-- Raises IT041 when nothing is pending, or more than a million numbers are missing between; IT043 without a reason, and
-- what _lock_cursor raises.
DECLARE
    was inturn.key_cursor;
    action inturn.operator_action;
BEGIN
    PERFORM inturn._require_reason('cancel_rest', reason);
    was := inturn._lock_cursor(topic, key);
    action := inturn._cancel_key(was, reason);
    IF action.id IS NULL THEN
        PERFORM inturn._refuse_action(topic, key, format('has nothing pending: all is applied up to %s',
                                                         was.applied_seq),
                                     'There is nothing to cancel.');
    END IF;
    RETURN action;
END
$$;
COMMENT ON FUNCTION inturn.cancel_rest IS 'Passes over every command that is pending on a key now, for good.';
