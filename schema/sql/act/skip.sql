CREATE FUNCTION inturn.skip(topic text, key text, seq bigint, reason text) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
-- Skips the next command of a key, for good; returns the recorded action.
--
-- seq: which command the operator takes to be the next. It stays in the log, and has an entry in skip; replay appends
-- it again. A turn that an applier may have begun without a lock is fenced off by the next epoch.
-- Locks, in this order: the key's ticket (see _lock_cursor); its row in key_sequence, if no caller holds it.
-- Raises IT041 when seq is not the next command, IT043 without a reason, and what _lock_cursor raises.
DECLARE
    was inturn.key_cursor;
BEGIN
    PERFORM inturn._require_reason('skip', reason);
    was := inturn._lock_cursor(topic, key);
    IF seq IS DISTINCT FROM was.applied_seq + 1 THEN
        PERFORM inturn._refuse_action(topic, key, format('has %s as its next command, not %s',
                                                         was.applied_seq + 1, seq),
            'Look again with inturn show; only the next command can be skipped.');
    END IF;
    IF inturn._pass_over(topic, key, seq, seq, was.epoch + 1, 'operator', reason) IS NULL THEN
        IF (inturn._find_later(was)).later > 0 THEN
            PERFORM inturn._refuse_action(topic, key, format('waits for command %s, which nobody has appended', seq),
                                          'To go on without it, use fill-gap.');
        END IF;
        PERFORM inturn._refuse_action(topic, key, format('has no command %s: nothing is pending', seq),
                                      'There is nothing to skip.');
    END IF;
    RETURN inturn._record_action(topic, key, seq, 'skip', reason, inturn._key_facts(was),
                                inturn._key_facts(inturn._move_past(was, seq)));
END
$$;
COMMENT ON FUNCTION inturn.skip IS 'Passes over the next command of a key, for good.';
