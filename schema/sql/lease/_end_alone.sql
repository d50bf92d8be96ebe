-- Ends a turn that was claimed alone: records what was applied, and lets the key go. Internal to the appliers.
--
-- done_seq: the last command that was applied; one below the first when none was. Deferred constraints are checked
-- first, while no caller waits for the key; cursors WITH HOLD are closed, see _close_cursors.
-- error: what command done_seq + 1 failed with; NULL: none did. verdict, retry_after, took: see fail.
-- Returns the outcome: applied, or what fail returns.
-- Locks the key's ticket; its row in key_sequence, if no caller holds it. Raises what _hold_lease and the constraints
-- raise.
CREATE FUNCTION inturn._end_alone(
    topic text, key text, epoch bigint, done_seq bigint,
    error text DEFAULT NULL, verdict text DEFAULT NULL, retry_after interval DEFAULT NULL, took interval DEFAULT NULL
) RETURNS text
LANGUAGE plpgsql VOLATILE
-- Neither pinned nor with other settings, which would reach into the constraints' functions: all is qualified.
AS $$
BEGIN
    SET CONSTRAINTS ALL IMMEDIATE;
    PERFORM inturn._close_cursors();
    RETURN inturn._end_turn_alone(topic, key, epoch, done_seq, error, verdict, retry_after, took);
END
$$;
COMMENT ON FUNCTION inturn._end_alone IS 'Internal to the appliers: ends a turn that was claimed alone.';
