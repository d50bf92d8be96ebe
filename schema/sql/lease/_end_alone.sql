-- Ends a turn that was claimed alone: records what was applied, and lets the key go. Internal to the appliers.
--
-- done_seq: the last command that was applied; one below the first when none was. Deferred constraints are checked first,
-- while no caller waits for the key.
-- error: what command done_seq + 1 failed with; NULL: none did. verdict, retry_after: see fail.
-- Returns the outcome: applied, or what fail returns.
-- Locks the key's ticket; its row in key_sequence, if no caller holds it. Raises what _hold_lease and the constraints raise.
CREATE FUNCTION inturn._end_alone(
    topic text, key text, epoch bigint, done_seq bigint,
    error text DEFAULT NULL, verdict text DEFAULT NULL, retry_after interval DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off
AS $$
DECLARE
    was inturn.key_cursor := inturn._hold_lease(topic, key, epoch);
    cursor inturn.key_cursor;
    from_seq constant bigint := was.applied_seq + 1;
BEGIN
    SET CONSTRAINTS ALL IMMEDIATE;
    IF error IS NOT NULL THEN
        was.lost := 0; -- whoever can say so is not lost
        RETURN inturn._record_failure(
            was, epoch, from_seq, done_seq + 1, CASE WHEN done_seq >= from_seq THEN 1 ELSE was.attempts + 1 END,
            error, was.claimed_by, was.claimed_at, verdict, retry_after);
    END IF;
    cursor := was;
    cursor.claimed_by := NULL; cursor.claimed_at := NULL; cursor.lease_until := NULL;
    IF done_seq >= from_seq THEN
        INSERT INTO inturn.turn (topic, key, epoch, from_seq, to_seq, applied_seq, drained, outcome, applier, started_at)
        VALUES (_end_alone.topic, _end_alone.key, _end_alone.epoch, from_seq, done_seq, done_seq, false, 'applied',
                was.claimed_by, was.claimed_at);
        cursor.applied_seq := done_seq;
        cursor.attempts := 0; cursor.lost := 0; cursor.empty_turns := 0; cursor.last_error := NULL; cursor.failed_at := NULL;
    END IF;
    PERFORM inturn._settle_key(was, cursor);
    RETURN 'applied';
END
$$;
COMMENT ON FUNCTION inturn._end_alone IS 'Internal to the appliers: ends a turn that was claimed alone.';
