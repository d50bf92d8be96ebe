-- Records what became of a turn that was taken alone (see _claim_alone) and was rolled back, or whose connection broke;
-- returns the outcome. Internal to the appliers, which say it in a transaction of its own.
--
-- error: what it was rolled back with; NULL: by no fault of the command, so that the key is let go as it was. is_clear:
-- only the command can be the cause, so it counts as an attempt; false: see _lose_lease; NULL: inturn's own statements
-- have lost against another transaction, so the key is put off (see _put_off). Its key is taken alone again, as what it
-- does to its transaction or session it would do to others in a batch.
-- No row is changed when the lease is gone: whoever has the key now has found out. When the failure of this key cannot
-- be recorded, the key is put off too.
-- Locks the key's ticket, and what release locks.
CREATE FUNCTION inturn._lose_alone(topic text, key text, epoch bigint, error text, is_clear boolean) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    was inturn.key_cursor;
    outcome text;
    problem text;
    state text;
BEGIN
    was := inturn._hold_lease(topic, key, epoch);
    IF is_clear IS NULL THEN
        PERFORM inturn._put_off(was, error, '40001');
        RETURN 'put off';
    END IF;
    BEGIN
        IF error IS NULL THEN
            PERFORM inturn.release(topic, key, epoch);
            RETURN 'released';
        ELSIF is_clear THEN
            outcome := inturn._end_turn_alone(topic, key, epoch, was.applied_seq, error);
            UPDATE inturn.key_mark m SET lost = 1
            WHERE m.topic = _lose_alone.topic AND m.key = _lose_alone.key AND m.epoch = _lose_alone.epoch
              AND m.attempts > 0;
            RETURN outcome;
        END IF;
        RETURN inturn._lose_lease(was, error);
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS problem = MESSAGE_TEXT, state = RETURNED_SQLSTATE;
    END;
    PERFORM inturn._put_off(was, concat_ws(E'\n', 'its failure could not be recorded: ' || problem, error), state);
    RETURN 'put off';
EXCEPTION WHEN SQLSTATE 'IT030' THEN
    RETURN 'fenced';
END
$$;
COMMENT ON FUNCTION inturn._lose_alone IS
    'Internal to the appliers: records what became of a turn that was rolled back.';
