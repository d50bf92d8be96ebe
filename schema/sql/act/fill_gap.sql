CREATE FUNCTION inturn.fill_gap(topic text, key text, seq bigint, reason text) RETURNS inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
-- Skips a number that a key waits for and that nobody has appended; returns the recorded action.
--
-- It has an entry in skip and no command; its late append is refused.
-- Locks, in this order: the key's ticket (see _lock_cursor); its row in key_sequence, waiting for its callers, who wait
-- for no ticket.
-- Raises IT041 when the key does not wait for seq, IT043 without a reason, and what _lock_cursor raises.
DECLARE
    was inturn.key_cursor;
BEGIN
    PERFORM inturn._require_reason('fill_gap', reason);
    was := inturn._lock_cursor(topic, key, beside_lease => true);
    IF was.waiting_at IS NOT NULL THEN
        -- The append of the missing number may be open at this moment.
        PERFORM inturn._lock_callers(topic, key);
    END IF;
    IF EXISTS (SELECT FROM inturn.command_log l
               WHERE l.topic = fill_gap.topic AND l.key = fill_gap.key AND l.seq = fill_gap.seq) THEN
        PERFORM inturn._refuse_action(topic, key, format('has command %s: it is not missing', seq),
                                      'To skip a command that is there, use skip.');
    ELSIF was.waiting_at IS NULL OR seq IS DISTINCT FROM was.applied_seq + 1 THEN
        PERFORM inturn._refuse_action(topic, key, CASE WHEN was.waiting_at IS NULL THEN 'waits for no number'
            ELSE format('waits for %s, not %s', was.applied_seq + 1, seq) END, 'Look again with inturn why.');
    END IF;
    INSERT INTO inturn.skip (topic, key, seq, epoch, skipped_by, reason)
    VALUES (fill_gap.topic, fill_gap.key, fill_gap.seq, was.epoch + 1, 'operator', fill_gap.reason);
    RETURN inturn._record_action(topic, key, seq, 'fill-gap', reason, inturn._key_facts(was),
                                inturn._key_facts(inturn._move_past(was, seq)));
END
$$;
COMMENT ON FUNCTION inturn.fill_gap IS 'Passes over a number that a key waits for and that nobody has appended.';
