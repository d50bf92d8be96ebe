-- Passes over every command that is pending on a key now, for good; returns the recorded action.
--
-- What is committed later is applied as ever. after says how many were passed over (cancelled).
-- Locks, in this order: the key's ticket (see _lock_cursor); its row in key_sequence, if no caller holds it.
-- Raises IT041 when nothing is pending, IT043 without a reason, and what _lock_cursor raises.
CREATE FUNCTION inturn.cancel_rest(topic text, key text, reason text) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    was inturn.key_cursor;
    last_seq bigint;
BEGIN
    PERFORM inturn._require_reason('cancel_rest', reason);
    was := inturn._lock_cursor(topic, key);
    last_seq := inturn._pass_over(topic, key, was.applied_seq + 1, NULL, was.epoch + 1, 'operator', reason);
    IF last_seq IS NULL THEN
        PERFORM inturn._refuse_action(topic, key, format('has nothing pending: all is applied up to %s', was.applied_seq),
                                     'There is nothing to cancel.');
    END IF;
    RETURN inturn._record_action(topic, key, was.applied_seq + 1, 'cancel-rest', reason, inturn._key_facts(was),
        inturn._key_facts(inturn._move_past(was, last_seq)) || jsonb_build_object('cancelled', last_seq - was.applied_seq));
END
$$;
COMMENT ON FUNCTION inturn.cancel_rest IS 'Passes over every command that is pending on a key now, for good.';
