-- Ends a turn that was claimed alone: records what was applied, and lets the key go. Internal to _end_alone and
-- _lose_alone.
--
-- Locks the key's ticket; its row in key_sequence, if no caller holds it. Raises what _hold_lease and _require_commands
-- raise.
CREATE FUNCTION inturn._end_turn_alone(
    topic text, key text, epoch bigint, done_seq bigint,
    error text DEFAULT NULL, verdict text DEFAULT NULL, retry_after interval DEFAULT NULL, took interval DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    was inturn.key_cursor := inturn._hold_lease(topic, key, epoch);
    cursor inturn.key_cursor;
    from_seq constant bigint := was.applied_seq + 1;
BEGIN
    PERFORM inturn._require_commands(topic, key, from_seq, CASE WHEN error IS NULL THEN done_seq ELSE done_seq + 1 END);
    IF error IS NOT NULL THEN
        was.lost := 0; -- whoever can say so is not lost
        RETURN inturn._record_failure(
            was, epoch, from_seq, done_seq + 1, CASE WHEN done_seq >= from_seq THEN 1 ELSE was.attempts + 1 END,
            error, was.claimed_by, least(greatest(was.claimed_at, clock_timestamp() - took), clock_timestamp()),
            verdict, retry_after);
    END IF;
    cursor := was;
    cursor.claimed_by := NULL; cursor.claimed_at := NULL; cursor.lease_until := NULL;
    IF done_seq >= from_seq THEN
        INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome,
                                 applier, started_at)
        VALUES (_end_turn_alone.topic, _end_turn_alone.key, _end_turn_alone.epoch, from_seq, done_seq, done_seq,
                false, 'applied',
                was.claimed_by, was.claimed_at);
        cursor.applied_seq := done_seq;
        cursor.attempts := 0; cursor.lost := 0; cursor.empty_turns := 0; cursor.last_error := NULL;
        cursor.failed_at := NULL;
    END IF;
    PERFORM inturn._requeue(was, cursor);
    RETURN 'applied';
END
$$;
COMMENT ON FUNCTION inturn._end_turn_alone IS
    'Internal to the appliers: ends a turn that was claimed alone, whose constraints are checked.';
