CREATE FUNCTION inturn.cancel_rest_all(
    reason text, of_topic text DEFAULT NULL, of_state text DEFAULT 'held', of_like text DEFAULT NULL,
    older_than interval DEFAULT NULL, of_error text DEFAULT NULL
) RETURNS SETOF inturn.operator_action
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
-- Passes over every command that is pending now, for good, on each held or retrying key that the filters of list_keys
-- find; returns the recorded actions.
--
-- of_state: held, retrying, or both with a comma between them, which is what NULL means. A key that somebody else has
-- in hand is left out: it is being tried again, or an operator acts on it. So is one of whose pending numbers more than
-- a million are missing, with a WARNING. What is committed later is applied as usual.
-- Locks, in this order: the keys' tickets, skipping locked ones; their rows in key_sequence, skipping those that a
-- caller holds.
-- Raises IT043 without a reason, IT044 for another state, and what list_keys does.
DECLARE
    was inturn.key_cursor;
    action inturn.operator_action;
BEGIN
    PERFORM inturn._require_reason('cancel_rest_all', reason);
    FOR was IN SELECT * FROM inturn._lock_failed_keys(of_topic, of_state, of_like, older_than, of_error) LOOP
        IF inturn._misses_many(was.topic, was.key, was.applied_seq) THEN
            RAISE WARNING USING MESSAGE =
                format('key %L of topic %L is left out: too many numbers are missing on it', was.key, was.topic);
            CONTINUE;
        END IF;
        action := inturn._cancel_key(was, reason);
        IF action.id IS NOT NULL THEN
            RETURN NEXT action;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION inturn.cancel_rest_all IS
    'Passes over all that is pending on each held or retrying key that the filters find.';
